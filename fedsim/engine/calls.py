"""Calls to worker processes that may die of them: made again, and never lost for one client."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from fedsim.engine.blocks import Block

MAX_DEATHS = 3
"""How many worker processes a call may end before its clients are tried one by one; each of them,
before it has failed; and the call once more, without those, before it is given up."""


@dataclass(eq=False)
class Call:
    """Arguments of a worker's method, and what became of it so far.

    Args:
        arguments: The first one may be a list of blocks.
        index: Place of the answer among those of its caller; None for a trial.
        suspects: For a trial, the call whose clients are tried.

    Attributes:
        deaths: Worker processes that it ended.
        fatal: Its clients that end every worker process; it is made without them.
    """

    arguments: tuple[Any, ...]
    index: int | None = None
    suspects: Call | None = None
    deaths: int = 0
    fatal: frozenset[int] = frozenset()
    _trials: int = 0

    @property
    def num_clients(self) -> int:
        """Clients that it works on."""
        return sum(len(block.clients) for block in blocks_of(self.arguments))

    def answered(self) -> list[Call]:
        """What can be called now that this is done."""
        return self.suspects._after_trial(frozenset()) if self.suspects else []

    def ended_a_worker(self) -> list[Call] | None:
        """What to call after another death; None if there is nothing left to try."""
        self.deaths += 1
        if self.deaths % MAX_DEATHS:
            return [self]
        if self.deaths > MAX_DEATHS or not isinstance(self.arguments[0], list):
            return None
        blocks, *others = self.arguments
        if self.suspects:
            self.fatal = frozenset(blocks[0].clients)
            return self.suspects._after_trial(self.fatal)
        alone = [block.of(client) for block in blocks for client in block.clients]
        self._trials = len(alone)
        return [Call(([block], *others), suspects=self) for block in alone]

    def _after_trial(self, fatal: frozenset[int]) -> list[Call]:
        """The call itself after the last trial."""
        self._trials -= 1
        self.fatal |= fatal
        return [] if self._trials else [self._without_fatal()]

    def _without_fatal(self) -> Call:
        blocks, *others = self.arguments
        self.arguments = ([replace(block, fatal=self.fatal) for block in blocks], *others)
        return self


def blocks_of(arguments: tuple[Any, ...]) -> list[Block]:
    """The blocks that a call works on; none for tests."""
    first = arguments[0]
    return first if isinstance(first, list) else [first] if isinstance(first, Block) else []
