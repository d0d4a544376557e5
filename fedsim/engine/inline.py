"""The grid in this process: one worker, no Ray; breakpoints work everywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Self

from fedsim.engine.blocks import Broadcast
from fedsim.engine.grid import WorkerGrid
from fedsim.engine.worker import Worker
from fedsim.strategy import to_record


class InlineGrid(WorkerGrid):
    """Runs blocks one after the other in the calling process."""

    def __enter__(self) -> Self:
        self.worker = Worker(self.recipe)
        self.facts = self.worker.facts()
        return self

    def __exit__(self, *exc: object) -> None:
        del self.worker

    def broadcast(self) -> Broadcast:
        """The initial arrays as clients would receive them."""
        return self._encode(to_record(self.facts["arrays"]))[0]

    def share(self, value: Any) -> Any:
        """The value itself."""
        return value

    def map(self, method: str, calls: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        """Call the worker; each call is made when its result is asked for."""
        for arguments in calls:
            yield getattr(self.worker, method)(*arguments)
