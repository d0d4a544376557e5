"""Where a model computes: on the CPU, or on the GPU that Ray reserved for this worker.

Rows are encoded and kept on the CPU, and each batch is brought to the device. Arrays that travel
are on the CPU, too. Initial weights are drawn there, so they are the same on every device.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from fedsim.errors import RunError
from fedsim.models.prefix import Rows

if TYPE_CHECKING:
    from fedsim.task import Batch


def choose(gpus_per_worker: float) -> torch.device:
    """The CPU, or this process's first GPU when the scenario reserves some.

    On a GPU only algorithms run that give equal bits for equal inputs; torch names any other one in
    an error.

    Raises:
        RunError: A GPU is asked for and torch finds none.
    """
    if not gpus_per_worker:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RunError(
            f"engine.gpus_per_worker is {gpus_per_worker:g}, but torch finds no GPU here",
            hint="Install torch's CUDA build and a driver, or leave the option out",
        )
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.use_deterministic_algorithms(True)
    return torch.device("cuda")


def place(batch: Batch, device: torch.device) -> Batch:
    """The batch on a device; the same object where it is there already."""
    if all(tensor.device.type == device.type for tensor in batch.values()):
        return batch
    moved = {name: tensor.to(device) for name, tensor in batch.items()}
    return Rows(moved, batch.hidden.to(device)) if isinstance(batch, Rows) else moved
