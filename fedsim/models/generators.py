"""torch's global generators: the CPU's and, where a model computes on one, the GPU's."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor


def preserved(device: torch.device) -> AbstractContextManager[None]:
    """Leave the generators as they were."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def states(device: torch.device) -> Tensor:
    """What changes with every draw."""
    found = [torch.get_rng_state()]
    if device.type == "cuda":
        found.append(torch.cuda.get_rng_state(device))
    return torch.cat(found)
