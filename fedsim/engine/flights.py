"""Clients at work in an asynchronous run, in the order in which their answers arrive.

A flight is one start of one client. What it answers depends on its version of the model, its client
and its number alone, so the work is done whenever workers are free; only the time of its arrival is
virtual. That time is known after the work; before, a lower bound is. Flights are worked on together
at the latest moment: when one of them might be the next to arrive.

    heap of (end if known, else lower bound; number);   the top is next if its end is known
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedsim.arrays import Arrays
from fedsim.engine.blocks import Block, BlockResult
from fedsim.errors import PluginError


@dataclass
class Flight:
    """One start of one client.

    Attributes:
        number: Counts starts; names the client's random streams.
        version: Server updates when it started.
        start_s: Virtual time of the start.
        bound_s: It cannot arrive earlier.
        config: Of its message.
        result: What the worker answered, once it has worked.
        end_s: Virtual time of the arrival; infinite until then.
    """

    number: int
    client: int
    version: int
    start_s: float
    bound_s: float
    config: Mapping[str, Any]
    result: BlockResult | None = None
    end_s: float = math.inf

    def block(
        self,
        budgets: tuple[int, ...] = (),
        residuals: tuple[Arrays | None, ...] = (),
    ) -> Block:
        """What a worker is told of it; ``residuals`` as in ``Block``."""
        return Block(
            server_round=self.version + 1,
            clients=(self.client,),
            states=(None,),
            config=self.config,
            reduce=False,
            budgets=budgets,
            residuals=residuals,
            start=self.number,
        )

    def saved(self) -> dict[str, Any]:
        """For a checkpoint; the work is done again after resuming."""
        names = ("number", "client", "version", "start_s", "bound_s")
        return {name: getattr(self, name) for name in names} | {"config": dict(self.config)}


class Flights:
    """All flights in the air.

    Args:
        work: Does the work of flights: sets ``result`` and ``end_s``.
    """

    def __init__(self, work: Callable[[Sequence[Flight]], None]) -> None:
        self._work = work
        self._flights: dict[int, Flight] = {}
        self._heap: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._flights)

    def __iter__(self) -> Iterator[Flight]:
        return iter(self._flights.values())

    @property
    def clients(self) -> set[int]:
        """Who is in the air."""
        return {flight.client for flight in self._flights.values()}

    def start(self, flight: Flight) -> None:
        """Add a flight whose work is still to be done."""
        self._flights[flight.number] = flight
        heapq.heappush(self._heap, (flight.bound_s, flight.number))

    def next_end(self, horizon: float = math.inf) -> float:
        """When the next flight arrives, exactly if not after ``horizon``; infinity if none does."""
        while self._heap:
            time, number = self._heap[0]
            if self._flights[number].result is not None or time > horizon:
                return time
            self._work_ahead()
        return math.inf

    def land(self) -> Flight:
        """Take the next flight to arrive; of several at one time, the first to have started."""
        assert self.next_end() < math.inf
        _, number = heapq.heappop(self._heap)
        return self._flights.pop(number)

    def _work_ahead(self) -> None:
        waiting = [f for f in self._flights.values() if f.result is None]
        self._work(waiting)
        for flight in waiting:
            if flight.end_s < flight.bound_s:
                raise PluginError(
                    f"client {flight.client} worked less than its method's rehearse() announced",
                    key=("client",),
                    hint="Note in rehearse() only batches that train() is going to use",
                )
        known = self._flights.values()
        self._heap = [(f.end_s, f.number) for f in known]
        heapq.heapify(self._heap)


@dataclass
class Versions:
    """The server's models that flights in the air started from; immutable, counted, then dropped.

    >>> versions = Versions()
    >>> versions.take(3, lambda: "model of version 3"), versions.take(3, list)
    ('model of version 3', 'model of version 3')
    >>> versions.release(3), len(versions), versions.release(3), len(versions)
    (None, 1, None, 0)
    """

    _kept: dict[int, tuple[Any, int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, number: int) -> Any:
        return self._kept[number][0]

    def items(self) -> dict[int, Any]:
        """All kept versions by number."""
        return {number: value for number, (value, _) in self._kept.items()}

    def take(self, number: int, make: Callable[[], Any]) -> Any:
        """One more flight of this version, which is made when it is the first."""
        value, count = self._kept.get(number) or (make(), 0)
        self._kept[number] = value, count + 1
        return value

    def release(self, number: int) -> None:
        """One flight of this version less."""
        value, count = self._kept.pop(number)
        if count > 1:
            self._kept[number] = value, count - 1


class Idle(Sequence[int]):
    """The clients 0 .. total - 1 without the busy ones, none of them listed.

    >>> list(Idle(6, {4, 1}))
    [0, 2, 3, 5]
    """

    def __init__(self, total: int, busy: Iterable[int]) -> None:
        self._busy = sorted(busy)
        self._total = total

    def __len__(self) -> int:
        return self._total - len(self._busy)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        client = int(index)
        for busy in self._busy:
            if busy > client:
                break
            client += 1
        return client
