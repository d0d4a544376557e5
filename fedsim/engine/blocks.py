"""What travels between the grid and its workers: blocks of clients, and their answers.

A cohort is cut into fixed blocks by client index. The cut depends on the cohort alone, never on the
number of workers, so that sums have one order and equal seeds give equal bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedsim.arrays import Arrays
from fedsim.clock import Trip
from fedsim.cost import Spent

BLOCKS_PER_ROUND = 16
"""A cohort is cut into at most this many blocks: enough to balance eight workers."""

ClientState = Any
"""What a client keeps between participations: ``Arrays``, or Flower's ``RecordDict`` for apps."""


@dataclass(frozen=True)
class Broadcast:
    """One encoded message content from the server, shared by the clients that receive it."""

    key: str
    payload: NDArray[np.uint8]
    parts: Mapping[str, int]

    @property
    def num_bytes(self) -> int:
        """Exact encoded length of what each client receives."""
        return len(self.payload)


@dataclass(frozen=True)
class Block:
    """Clients that one call to a worker handles, one after the other.

    Attributes:
        reduce: Answer with the weighted mean of the block instead of one payload per client.
        weights: The strategy's own weights in that mean; if empty, it is ``num_examples``.
        start: In an asynchronous run, the number of the start; it names the random streams, since
            a client may start several times from one version.
        budgets: Bytes of memory of each client's device; empty without devices.
    """

    server_round: int
    clients: tuple[int, ...]
    states: tuple[ClientState | None, ...]
    config: Mapping[str, Any]
    reduce: bool
    budgets: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()
    start: int | None = None

    @property
    def draw(self) -> int:
        """What distinguishes the clients' random draws from those at other times."""
        return self.server_round if self.start is None else self.start

    def weight(self, client: int, num_examples: int) -> float:
        """Weight of one of the block's clients in its mean."""
        return self.weights[self.clients.index(client)] if self.weights else num_examples


Status = Literal["ok", "failed", "oom", "dropped", "interrupted", "late", "void"]
"""Of a client in a round: it answered in time; its code failed; its device has too little memory;
it vanished at work; it became unavailable; it answered too late; too few others answered."""


@dataclass
class Report:
    """What happened to one client in one round.

    ``spent`` and ``trip`` are known where the scenario has devices.
    """

    client: int
    status: Status = "ok"
    num_examples: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    up_bytes: int = 0
    up_parts: dict[str, int] = field(default_factory=dict)
    down_bytes: int = 0
    wall_s: float = 0.0
    error: str = ""
    spent: Spent = field(default_factory=Spent)
    rows_at_once: int = 0
    trip: Trip | None = None
    device: str = ""


@dataclass
class BlockResult:
    """A worker's answer to a block: reports and states in the order of its clients.

    ``payloads`` holds the encoded updates of the clients that succeeded; with ``reduce`` it is
    empty and ``mean`` is their weighted mean, decoded.
    """

    reports: list[Report]
    states: list[ClientState | None]
    payloads: list[bytes] = field(default_factory=list)
    mean: Arrays | None = None
    peak_bytes: int = 0


def cut(items: Sequence[int]) -> list[Sequence[int]]:
    """Cut a cohort into at most ``BLOCKS_PER_ROUND`` runs whose lengths differ by one at most.

    >>> [len(part) for part in cut(range(20))]
    [2, 1, 1, 1, 2, 1, 1, 1, 2, 1, 1, 1, 2, 1, 1, 1]
    """
    count = min(len(items), BLOCKS_PER_ROUND)
    bounds = [-(-len(items) * i // count) for i in range(count + 1)] if count else []
    return [items[a:b] for a, b in pairwise(bounds)]
