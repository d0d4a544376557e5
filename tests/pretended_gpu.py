"""A GPU that is none: tensors that say they are elsewhere, and compute on the CPU.

``python -m tests.pretended_gpu`` runs small scenarios there and says, one JSON line each, which
of them end with the CPU's weights. A tensor left on the CPU, or an array taken from where there is
none, fails as it would on a GPU. What only a real one shows stays open: its kernels, its memory,
its speed.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from fedsim import registry, simulation
from fedsim.models import device
from fedsim.scenario import Scenario
from tests.problems import tiny
from tests.test_speed_options import scenario as network

NAME = "pretended"
INDEXING = ("aten::index", "aten::index_put_")
"""Takes positions from the CPU, as CUDA does."""


class Elsewhere(torch.Tensor):
    """A tensor of the pretended device around one of the CPU."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )

    def __init__(self, inner):
        self.inner = inner

    def __tensor_flatten__(self):
        return ["inner"], None

    @classmethod
    def __tensor_unflatten__(cls, inner, *_):
        return cls(inner["inner"])

    def tolist(self):
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return carry_out(function, args, kwargs or {})


class Factories(TorchDispatchMode):
    """Also sees what makes tensors from none."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return carry_out(function, args, kwargs or {})


def carry_out(function: Any, args: Any, kwargs: Any) -> Any:
    """Compute on the CPU what torch asks of either device."""
    name = function._schema.name
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    wrappers = {id(x.inner): x for x in tensors if isinstance(x, Elsewhere)}
    here = bool(wrappers)
    if "device" in kwargs and kwargs["device"] is not None:
        here = torch.device(kwargs["device"]).type == NAME
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if name == "aten::copy_":
        here = isinstance(args[0], Elsewhere)
    elif name != "aten::_to_copy" and wrappers:
        for x in tensors:  # numbers may come from the CPU, as with CUDA
            if not isinstance(x, Elsewhere) and x.dim() and name not in INDEXING:
                raise RuntimeError(f"Expected all tensors to be on the same device, in {name}")
    args, kwargs = tree_map(_unwrapped, (args, kwargs))
    result = function(*args, **kwargs)
    if not here:
        return result
    return tree_map(lambda x: _wrapped(x, wrappers), result)


def _unwrapped(x: Any) -> Any:
    return x.inner if isinstance(x, Elsewhere) else x


def _wrapped(x: Any, known: dict[int, Elsewhere]) -> Any:
    if not isinstance(x, torch.Tensor):
        return x
    return known[id(x)] if id(x) in known else Elsewhere(x)


@contextmanager
def pretended() -> Iterator[None]:
    """Within it, ``engine.gpus_per_worker`` finds a device."""
    found, device.choose = device.choose, lambda gpus: torch.device(NAME if gpus else "cpu")
    try:
        with Factories():
            yield
    finally:
        device.choose = found


def of_client(name: str) -> Callable[..., Scenario]:
    """A client method with the strategy that speaks to it."""
    strategies = {"kseed": "fedkseed", "ferret": "ferret", "fedmezo": "fedmezo"}
    strategy = {"name": strategies.get(name, "fedavg")}
    client = {"name": name, "local_steps": 1, "batch_size": 8}
    return lambda **engine: small(engine, client=client, strategy=strategy)


def small(engine: dict[str, Any], **changes: Any) -> Scenario:
    """Two clients, one round: each of torch's calls costs as much as a thousand weights."""
    return tiny(**{"num_clients": 2, "num_rounds": 1, "engine": engine, **changes})


def scenarios() -> dict[str, Callable[..., Scenario]]:
    """Every client method, and what else looks at the model."""
    replay = {"name": "fedkseed", "replay": "clients"}
    feedback = {"name": "ef21w", "power_iterations": 2}
    chain = {"name": "topk", "density": 0.2, "error_feedback": feedback}
    return {
        **{name: of_client(name) for name in registry.available("clients")},
        "replay of seeds": lambda **engine: small(
            engine, num_rounds=2, client={"name": "kseed", "local_steps": 1}, strategy=replay
        ),
        "gradients of clients": lambda **engine: small(
            engine, client={"name": "sgd", "local_steps": 1}, codec={"up": [chain]}
        ),
        "scores of clients": lambda **engine: small(
            engine, data={"client_test_fraction": 0.2}, evaluate={"personal": True}
        ),
        "frozen layers": lambda **engine: network("bert", engine=engine),
        "frozen layers, kept": lambda **engine: network(
            "bert", engine={**engine, "cache_prefix": True}
        ),
        "batch statistics": lambda **engine: network(
            "resnet", engine=engine, model={"peft": "none", "trainable": []}
        ),
    }


def compare(make: Callable[..., Scenario], out: Path) -> str:
    """``same bits``, or what is different."""
    here = simulation.run(make(), out=out)
    with pretended():
        there = simulation.run(make(gpus_per_worker=1), out=out)
    hashes = [run.summary["weights_sha256"] for run in (here, there)]
    if hashes[0] == hashes[1]:
        return "same bits"
    losses = [run.rounds[-1]["eval/loss"] for run in (here, there)]
    return "same loss" if abs(losses[0] - losses[1]) < 1e-5 else f"losses {losses}"


def main() -> None:
    """Print what became of each scenario."""
    _setup_privateuseone_for_python_backend(NAME)
    with tempfile.TemporaryDirectory() as out:
        for name, make in scenarios().items():
            print(json.dumps({name: compare(make, Path(out))}), flush=True)


if __name__ == "__main__":
    main()
