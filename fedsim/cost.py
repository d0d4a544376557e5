"""What a client's work costs its device: FLOPs by torch's counter, memory by meters.

Both are measured on the task's own model, adapter and batch shapes, once for each shape:

    flops(batch)  = forward [+ backward], as executed: frozen weights need no gradient of their own
    memory(batch) = weights + copies of what is trained + gradients + optimizer state
                    + activations kept for the backward pass (or the widest module of a forward)

A device is charged for the whole model even where the simulator skips frozen blocks it has already
computed. The optimizer state and the number of copies are what the client method declares.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from fedsim.models import generators
from fedsim.task import Batch, Task

if TYPE_CHECKING:
    from fedsim.client import ClientMethod

Shape = tuple[tuple[tuple[str, tuple[int, ...]], ...], bool]
"""Names and shapes of a batch's tensors, and whether a gradient is wanted."""


def _attention(q: Any, k: Any, v: Any, *args: Any, **others: Any) -> int:
    return sdpa_flop_count(q, k, v)  # type: ignore[no-any-return,no-untyped-call]


def _attention_backward(gradient: Any, q: Any, k: Any, v: Any, *args: Any, **others: Any) -> int:
    return sdpa_backward_flop_count(gradient, q, k, v)  # type: ignore[no-any-return,no-untyped-call]


_aten = torch.ops.aten
FORMULAS: dict[Any, Any] = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""Operations that torch's counter does not know."""


@dataclass(frozen=True)
class BatchCost:
    """The cost of one batch.

    Attributes:
        flops: Forward, and backward where a gradient was wanted.
        activation_bytes: Kept for the backward pass; without one, the widest module's in and out.
    """

    flops: int
    activation_bytes: int


@dataclass
class Tally:
    """What one client did: how many batches of which shape, and one of each to measure."""

    counts: Counter[Shape] = field(default_factory=Counter)
    samples: dict[Shape, Batch] = field(default_factory=dict)
    rows: int = 0
    flops: int = 0
    """Beside the batches; of a Flower ClientApp, all of them, counted while it was executed."""

    def note(self, batch: Batch) -> None:
        """Count a batch that is about to go through the model."""
        shape = shape_of(batch, torch.is_grad_enabled())
        self.counts[shape] += 1
        self.samples.setdefault(shape, batch)
        self.rows += next(iter(batch.values())).shape[0]


@dataclass(frozen=True)
class Spent:
    """The cost of one client's round."""

    flops: int = 0
    batches: int = 0
    examples: int = 0
    memory_bytes: int = 0


class Meter:
    """Costs of a task's batches under a client method; measured once for each shape.

    Args:
        task: Whose model is measured. Gradients of its parameters are cleared by measuring.
        method: Declares optimizer state, copies and whether it needs a backward pass; None for
            Flower's ClientApps, whose memory is not known.
    """

    def __init__(self, task: Task, method: ClientMethod | None) -> None:
        self.task, self.method = task, method
        parameters = list(task.parameters.values())
        tensors = [*task.model.parameters(), *task.model.buffers()]
        self.weight_bytes = sum({t.data_ptr(): t.nbytes for t in tensors}.values())
        trained = sum(p.nbytes for p in parameters)
        self.fixed_bytes = self.weight_bytes
        if method is not None:
            kept = method.copies() + (1 if method.backward else 0)  # gradients
            self.fixed_bytes += kept * trained + method.optimizer_bytes(parameters)
        self._costs: dict[Shape, BatchCost] = {}

    def spent(self, tally: Tally) -> Spent:
        """The cost of what a client did."""
        costs = {s: self._cost(s, tally.samples[s]) for s in tally.counts}
        peak = max((c.activation_bytes for c in costs.values()), default=0)
        return Spent(
            flops=tally.flops + sum(costs[s].flops * n for s, n in tally.counts.items()),
            batches=sum(tally.counts.values()),
            examples=tally.rows,
            memory_bytes=self.fixed_bytes + peak if self.method is not None else 0,
        )

    def memory_bytes(self, batch: Batch) -> int:
        """Peak memory of a training step on a batch."""
        wants_gradient = self.method is None or self.method.backward
        return (
            self.fixed_bytes + self._cost(shape_of(batch, wants_gradient), batch).activation_bytes
        )

    def flops(self, batch: Batch) -> int:
        """Of a training step on a batch."""
        wants_gradient = self.method is None or self.method.backward
        return self._cost(shape_of(batch, wants_gradient), batch).flops

    def largest_batch(self, client: int, rows: int | None = None) -> Batch:
        """A batch of the method's size, as wide as the client's longest row."""
        data = dict(self.task.client_data(client))
        every = torch.arange(len(next(iter(data.values()))))
        size = rows or getattr(self.method, "batch_size", None) or len(every)
        return {n: t[:size] for n, t in self.task.objective.collate(data, every).items()}

    def rows_that_fit(self, client: int, budget: int, may_shrink: bool) -> tuple[int, int]:
        """Rows in a batch that a device can hold, and what the whole batch would need.

        Args:
            client: Whose data is looked at.
            budget: Bytes of memory of the device.
            may_shrink: Whether fewer rows than the method's batch are allowed: halved until they
                fit.

        Returns:
            0 rows if nothing fits.
        """
        if self.fixed_bytes > budget:
            return 0, self.fixed_bytes
        batch = self.largest_batch(client)
        rows = next(iter(batch.values())).shape[0]
        needed = self.memory_bytes(batch)
        if needed <= budget:
            return rows, needed
        while may_shrink and rows > 1:
            rows = -(-rows // 2)
            if self.memory_bytes({n: t[:rows] for n, t in batch.items()}) <= budget:
                return rows, needed
        return 0, needed

    def _cost(self, shape: Shape, batch: Batch) -> BatchCost:
        if shape not in self._costs:
            self._costs[shape] = measure(self.task, dict(batch), shape[1])
        return self._costs[shape]


def shape_of(batch: Batch, gradient: bool) -> Shape:
    """What decides the cost of a batch."""
    return tuple((name, tuple(t.shape)) for name, t in batch.items()), gradient


def measure(task: Task, batch: Batch, gradient: bool) -> BatchCost:
    """Send a batch through the model once, with meters on; weights and generators stay."""
    model = task.model
    known = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    known |= {t.untyped_storage().data_ptr() for t in batch.values()}
    buffers = [(b, b.clone()) for b in model.buffers()]
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in known:
            kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with (
        generators.preserved(task.device),
        torch.set_grad_enabled(gradient),
        torch.compiler.set_stance("force_eager"),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        _widest(model) as widest,
        counted() as counter,
    ):
        loss = task.objective.loss(model, batch)
        activations = sum(t.untyped_storage().nbytes() for t in kept.values())
        if gradient:
            loss.backward()  # type: ignore[no-untyped-call]
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)
    return BatchCost(counter.get_total_flops(), activations if gradient else max(widest))


@contextmanager
def counted() -> Iterator[FlopCounterMode]:
    """Count the FLOPs of everything that is executed; recurrent layers are taken apart for it."""
    counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
    fused = torch._C._get_mkldnn_enabled()  # the public context manager sets TF32 flags, too
    torch._C._set_mkldnn_enabled(False)
    try:
        with counter:
            yield counter
    finally:
        torch._C._set_mkldnn_enabled(fused)


@contextmanager
def _widest(model: nn.Module) -> Iterator[list[int]]:
    """Bytes that go into and out of each innermost module."""
    sizes = [0]

    def note(module: nn.Module, args: Any, output: Any) -> None:
        tensors = [t for t in (*_flat(args), *_flat(output)) if isinstance(t, Tensor)]
        sizes.append(sum(t.nbytes for t in tensors))

    leaves = [m for m in model.modules() if not list(m.children())]
    handles = [leaf.register_forward_hook(note) for leaf in leaves]
    try:
        yield sizes
    finally:
        for handle in handles:
            handle.remove()


def _flat(value: Any) -> Sequence[Any]:
    return value if isinstance(value, tuple | list) else (value,)


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of an optimizer's state after one step, without step counters.

    >>> p = torch.nn.Parameter(torch.zeros(10))
    >>> optimizer_bytes(torch.optim.AdamW([p]))
    80
    """
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.zeros_like(p)
    optimizer.step()
    values = (v for state in optimizer.state.values() for v in state.values())
    return sum(v.nbytes for v in values if isinstance(v, Tensor) and v.dim() > 0)
