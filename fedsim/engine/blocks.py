"""What travels between the grid and its workers: blocks of clients, and their answers.

A cohort is cut into fixed blocks by client index. The cut depends on the cohort alone, never on the
number of workers, so that sums have one order and equal seeds give equal bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedsim.arrays import Arrays
from fedsim.client import Step
from fedsim.clock import Trip
from fedsim.codec import Span
from fedsim.cost import Spent

BLOCKS_PER_ROUND = 16
"""A cohort is cut into at most this many blocks: enough to balance eight workers."""

CALL_S = 0.05
"""Blocks go to a worker together as long as they take no more than this, by the last pace."""

ClientState = Any
"""What a client keeps between participations: ``Arrays``, or Flower's ``RecordDict`` for apps."""


@dataclass(frozen=True)
class Broadcast:
    """One encoded message content from the server, shared by the clients that receive it."""

    key: str
    payload: NDArray[np.uint8]
    parts: Mapping[str, int]
    base: Arrays | None = None
    """What the receivers hold already, when the payload is a change of it."""
    plan: bytes = b""
    """Per array, which candidate of the uplink codec's planned option to use."""
    number: int = 0
    """Counts the broadcasts of a run."""
    layers: Mapping[Span, int] = field(default_factory=dict)
    """Bytes by array and part, where a scenario asks for them."""
    packed: bool = False
    """Vectors in the form of ``fedsim.wire`` instead of the model's arrays."""

    @property
    def num_bytes(self) -> int:
        """Exact length of what each client receives, without catch-up."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Block:
    """Clients that one call to a worker handles, one after the other.

    Attributes:
        reduce: Answer with the weighted mean of the block instead of one payload per client.
        num_examples: Rows of its clients, by which the largest block goes first.
        weights: The strategy's own weights in that mean; if empty, it is ``num_examples``.
        start: In an asynchronous run, the number of the start; it names the random streams, since
            a client may start several times from one version.
        budgets: Bytes of memory of each client's device; empty without devices.
        residuals: What each client's codec remembers; empty unless it is stateful.
        fatal: Clients of the call that ended every process they were tried in: not to be run.
    """

    server_round: int
    clients: tuple[int, ...]
    states: tuple[ClientState | None, ...]
    config: Mapping[str, Any]
    reduce: bool
    num_examples: int = 0
    budgets: tuple[int, ...] = ()
    residuals: tuple[Arrays | None, ...] = ()
    weights: tuple[float, ...] = ()
    start: int | None = None
    fatal: frozenset[int] = frozenset()

    def of(self, client: int) -> Block:
        """The block of one of its clients, alone."""
        i = self.clients.index(client)
        columns = ("clients", "states", "budgets", "residuals", "weights")
        return replace(self, **{name: getattr(self, name)[i : i + 1] for name in columns})

    @property
    def draw(self) -> int:
        """What distinguishes the clients' random draws from those at other times."""
        return self.server_round if self.start is None else self.start

    def residual(self, client: int) -> Arrays:
        """What a client's codec remembers; empty before its first message."""
        return (self.residuals[self.clients.index(client)] or {}) if self.residuals else {}

    def weight(self, client: int, num_examples: int) -> float:
        """Weight of one of the block's clients in its mean."""
        return self.weights[self.clients.index(client)] if self.weights else num_examples


Status = Literal["ok", "failed", "oom", "dropped", "interrupted", "late", "void"]
"""Of a client in a round: it answered in time; its code failed; its device has too little memory;
it vanished at work; it became unavailable; it answered too late; too few others answered."""
ANSWERED: tuple[Status, ...] = ("ok", "late", "void")
"""Statuses of clients from which the server has heard."""


@dataclass
class Report:
    """What happened to one client in one round.

    ``internals`` are the engine's own numbers of an update (see ``fedsim.engine.update_norms``);
    ``up_layers`` and ``down_layers`` hold bytes by array and part, where the scenario asks for
    them; ``spent`` and ``trip`` are known where the scenario has devices; ``steps`` where it asks
    for a log of local steps.
    """

    client: int
    status: Status = "ok"
    num_examples: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    internals: dict[str, float] = field(default_factory=dict)
    up_bytes: int = 0
    up_parts: dict[str, int] = field(default_factory=dict)
    down_bytes: int = 0
    down_parts: dict[str, int] = field(default_factory=dict)
    up_layers: Mapping[Span, int] = field(default_factory=dict)
    down_layers: Mapping[Span, int] = field(default_factory=dict)
    wall_s: float = 0.0
    error: str = ""
    spent: Spent = field(default_factory=Spent)
    rows_at_once: int = 0
    trip: Trip | None = None
    device: str = ""
    steps: list[Step] = field(default_factory=list)


@dataclass
class BlockResult:
    """A worker's answer to a block: reports and states in the order of its clients.

    ``payloads`` holds the encoded updates of the clients that succeeded; with ``reduce`` it is
    empty and ``mean`` is their weighted mean, decoded. ``residuals`` is what the codecs of those
    that succeeded remember now, to be kept because their messages arrived.
    """

    reports: list[Report]
    states: list[ClientState | None]
    payloads: list[bytes] = field(default_factory=list)
    residuals: dict[int, Arrays] = field(default_factory=dict)
    mean: Arrays | None = None
    peak_bytes: int = 0


def cut(items: Sequence[int], least: int = 1) -> list[Sequence[int]]:
    """Cut a cohort into at most ``BLOCKS_PER_ROUND`` runs whose lengths differ by one at most.

    Args:
        items: Clients in order.
        least: Clients in a run, at least; fewer only if the whole cohort is smaller.

    >>> [len(part) for part in cut(range(20))]
    [2, 1, 1, 1, 2, 1, 1, 1, 2, 1, 1, 1, 2, 1, 1, 1]
    >>> [len(part) for part in cut(range(20), least=8)]
    [10, 10]
    """
    count = min(len(items), BLOCKS_PER_ROUND, max(1, len(items) // least))
    bounds = [-(-len(items) * i // count) for i in range(count + 1)] if count else []
    return [items[a:b] for a, b in pairwise(bounds)]


def bundled(blocks: Sequence[Block], block_s: float, num_workers: int) -> list[list[Block]]:
    """Blocks of about ``block_s`` seconds, several in a call where they are quick.

    No result depends on it; every worker still gets some.
    """
    share = -(-len(blocks) // num_workers)
    size = max(1, min(share, int(CALL_S / max(block_s, 1e-9))))
    return [list(blocks[i : i + size]) for i in range(0, len(blocks), size)]
