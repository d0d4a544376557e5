"""Skip the frozen blocks below the first trained one: what they answer to a row never changes.

Where the lower blocks of a network (and its embeddings) hold nothing that is trained, draw no
random number (no active dropout) and use no batch statistics, their answer to a row is the same in
every round. It is computed per client in a fixed shape, ``CHUNK`` rows at a time and as wide as the
client's longest row, and handed to the first trained block. That shape does not depend on batches,
workers or memory, so keeping the answer and computing it anew give the same bits. An ordinary
forward pass pads to the batch's longest row instead, and may differ in the last bit. Client methods
must therefore leave alone what is not exchanged, as the engine expects of them anyway.

``find`` tries the model out and answers None wherever this would not be exact.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from fedsim.models import generators

if TYPE_CHECKING:
    from fedsim.task import Batch

log = logging.getLogger("fedsim")
CHUNK = 32
"""Rows that go through the frozen blocks at once."""
LARGEST_BYTES = 128 * 2**20
"""Rows with more bytes of answers than this (a large test set) take the ordinary path."""


class Rows(dict[str, Tensor]):
    """Encoded rows or a batch of them, together with what the frozen blocks answer to them."""

    def __init__(self, rows: Batch, hidden: Tensor) -> None:
        super().__init__(rows)
        self.hidden = hidden  # (rows, ...)

    @property
    def num_bytes(self) -> int:
        """Memory of rows and answers."""
        return sum(t.nbytes for t in (self.hidden, *self.values()))


class FrozenPrefix:
    """The frozen blocks of a model, which can be stood in for by their answer.

    Args:
        blocks: They feed each other in this order. Their ``forward`` is changed.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        self._last = blocks[-1]
        self._answer: Tensor | None = None
        for block in blocks:
            original = cast(MethodType, block.forward).__func__
            forward = functools.wraps(original)(functools.partial(self._forward, original))
            block.forward = MethodType(forward, block)

    def _forward(
        self, forward: Callable[..., Any], block: nn.Module, hidden: Tensor, *args: Any, **kw: Any
    ) -> Any:
        if self._answer is None:
            return forward(block, hidden, *args, **kw)
        return self._answer if block is self._last else hidden

    @contextmanager
    def answering(self, batch: Batch) -> Iterator[None]:
        """Let the blocks answer what a batch brings along; one that brings nothing is computed."""
        self._answer = batch.hidden if isinstance(batch, Rows) else None
        try:
            yield
        finally:
            self._answer = None

    def attach(
        self,
        data: Batch,
        collate: Callable[[Batch, Tensor], Batch],
        run: Callable[[Batch], object],
        known: Tensor | None = None,
    ) -> Batch:
        """Encoded rows with the blocks' answers, or as they were if the answers are too large.

        Args:
            data: Encoded rows.
            collate: The objective's.
            run: Calls the model on a batch; it is stopped above the frozen blocks.
            known: Answers that were computed before.
        """
        every = torch.arange(len(next(iter(data.values()))))
        if len(every) == 0:
            return data
        rows = collate(data, every)
        if _columns_trimmed(data, every, rows) is None:
            return data
        if known is not None:
            return Rows(rows, known)
        parts: list[Tensor] = []
        for index in every.split(CHUNK):  # type: ignore[no-untyped-call]
            parts.append(self._compute(run, {name: x[index] for name, x in rows.items()}))
            if parts[0].nbytes / len(parts[0]) * len(every) > LARGEST_BYTES:
                return data
        return Rows(rows, torch.cat(parts))

    def _compute(self, run: Callable[[Batch], object], batch: Batch) -> Tensor:
        def stop(module: nn.Module, args: Any, output: Tensor) -> None:
            raise _Reached(output)

        handle = self._last.register_forward_hook(stop)
        try:
            with torch.no_grad(), torch.compiler.set_stance("force_eager"):
                run(batch)
        except _Reached as reached:
            return reached.output.contiguous()  # as it is read from a file
        finally:
            handle.remove()
        raise AssertionError("the model has left out its frozen blocks")


class _Reached(Exception):
    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output


def pick(data: Batch, index: Tensor, batch: Batch) -> Batch:
    """``batch`` with the answers to the rows ``index`` of ``data``, from which it was collated.

    A batch that is anything else than these rows (an objective may augment them) stays as it is.
    """
    if not isinstance(data, Rows):
        return batch
    trimmed = _columns_trimmed(data, index, batch)
    if trimmed is None:
        return batch
    hidden = data.hidden[index]
    return Rows(batch, hidden[:, : hidden.shape[1] - trimmed])


def _columns_trimmed(data: Batch, index: Tensor, batch: Batch) -> int | None:
    """Columns that a batch lacks at the end of the rows it holds; None if it holds others."""
    if data.keys() != batch.keys():
        return None
    trimmed = 0
    for name, part in batch.items():
        whole = data[name][index]
        if part.dim() > 1:
            trimmed = max(trimmed, whole.shape[1] - part.shape[1])
            whole = whole[:, : part.shape[1]]
        if not torch.equal(part, whole):
            return None
    return trimmed


def find(model: nn.Module, loss: Callable[[], Tensor]) -> FrozenPrefix | None:
    """The frozen blocks of a model, or None if there are none or they cannot be skipped exactly.

    The model must have one chain of equal blocks (an ``nn.ModuleList``). Frozen is the longest
    beginning of it whose output needs no gradient and during which no random number was drawn.
    Its output must not change with training mode, and the loss must keep its bits when the output
    is handed in.

    Args:
        model: With the right parameters set to be trained. Buffers may change.
        loss: Calls the model on a few rows. Where it fails, None is the answer: the failure will
            be reported where the model is used.
    """
    blocks = _chain(model)
    if not blocks or any(p.requires_grad for p in blocks[0].parameters()):
        return None
    training = model.training
    try:
        with generators.preserved(_device(model)):
            return _find(model, blocks, loss)
    except Exception:
        return None
    finally:
        model.train(training)


def _find(
    model: nn.Module, blocks: list[nn.Module], loss: Callable[[], Tensor]
) -> FrozenPrefix | None:
    model.train()
    calls, _ = _watch(blocks, loss)
    frozen = _count_frozen(calls, blocks)
    if frozen == 0:
        return None
    model.eval()
    with torch.no_grad():
        again, expected = _watch(blocks, loss)
        answer = again[frozen - 1].output.contiguous()
        if not torch.equal(answer, calls[frozen - 1].output):
            return None
        prefix = FrozenPrefix(blocks[:frozen])
        with prefix.answering(Rows({}, answer)):
            skipped = loss()
    if torch.equal(skipped, expected):
        log.info("%d of %d blocks are frozen and computed once per row", frozen, len(blocks))
        return prefix
    for block in blocks[:frozen]:
        del block.forward  # the class's own again
    return None


def _chain(model: nn.Module) -> list[nn.Module]:
    """The blocks of the outermost list of equal modules; none if there are several lists."""
    found: dict[str, list[nn.Module]] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and len(module) > 1 and not inside:
            found[name] = list(module)
    if len(found) != 1:
        return []
    (blocks,) = found.values()
    return blocks if len({type(block) for block in blocks}) == 1 else []


@dataclass(frozen=True)
class _Call:
    block: nn.Module
    hidden: Any
    output: Any
    drew: bool


def _watch(blocks: list[nn.Module], loss: Callable[[], Tensor]) -> tuple[list[_Call], Tensor]:
    """The calls of blocks while the loss is computed: what went in and out, and the loss."""
    calls: list[_Call] = []
    device = _device(blocks[0])
    start = generators.states(device)

    def note(block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        drew = not torch.equal(start, generators.states(device))
        calls.append(_Call(block, args[0] if args else None, output, drew))

    handles = [block.register_forward_hook(note) for block in blocks]
    try:
        return calls, loss()
    finally:
        for handle in handles:
            handle.remove()


def _device(module: nn.Module) -> torch.device:
    return next((p.device for p in module.parameters()), torch.device("cpu"))


def _count_frozen(calls: list[_Call], blocks: list[nn.Module]) -> int:
    if [call.block for call in calls] != blocks:  # shared, skipped or called twice
        return 0
    count, feeds = 0, calls[0].hidden
    for call in calls:
        is_tensor = isinstance(call.output, Tensor) and call.hidden is feeds
        if not is_tensor or call.output.requires_grad or call.drew:
            break
        count, feeds = count + 1, call.output
    return count
