"""The contract of a selector: which of the available clients take part in a round."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedsim.availability import Bools, Floats, Ids

State = dict[str, Any]
"""What a selector remembers from round to round; checkpointed by the engine."""


@dataclass(frozen=True)
class Outcome:
    """What the server saw of one client in a round.

    Attributes:
        seconds: From message to answer, on the virtual clock.
        loss: Mean training loss, when the client told it.
        answered: Whether it came back at all.
    """

    client: int
    seconds: float
    num_examples: int
    loss: float | None
    answered: bool


@dataclass(frozen=True)
class Pool:
    """The clients that a selector chooses from; nothing is listed, so a million cost nothing.

    Attributes:
        num_clients: All clients, available or not.
        server_round: From 1.
        available: Which of some clients are available now.
        seconds: Predicted time of a client's round trip, from what rounds cost so far; 0 before.
        stays: Which of some clients will be available after so many seconds each; the simulator
            knows.
        generator: For the choice.
    """

    num_clients: int
    server_round: int
    available: Callable[[Ids], Bools]
    seconds: Callable[[int], float]
    stays: Callable[[Ids, Floats], Bools]
    generator: np.random.Generator

    def sample(self, wanted: int) -> list[int]:
        """Up to ``wanted`` different available clients, each equally likely, in random order."""
        if wanted >= self.num_clients:
            everyone = np.arange(self.num_clients)
            return [int(c) for c in everyone[self.available(everyone)]]
        found: dict[int, None] = {}
        drawn = self.generator.choice(self.num_clients, wanted, replace=False)
        tried = 0
        while True:
            found.update(dict.fromkeys(drawn[self.available(drawn)].tolist()))
            tried += len(drawn)
            if len(found) >= wanted:
                return list(found)[:wanted]
            if tried >= self.num_clients // 2:
                break
            drawn = self.generator.integers(0, self.num_clients, max(wanted, tried))
        everyone = self.generator.permutation(self.num_clients)  # so few: look at all of them
        found.update(dict.fromkeys(everyone[self.available(everyone)].tolist()))
        return list(found)[:wanted]


class Selector(ABC):
    """Chooses the clients of a round; keep no state in it."""

    is_plugin: ClassVar[bool] = True

    @abstractmethod
    def choose(self, wanted: int, pool: Pool, state: State) -> list[int]:
        """Up to ``wanted`` different clients that are available."""

    def learn(  # noqa: B027
        self, server_round: int, outcomes: Sequence[Outcome], state: State
    ) -> None:
        """Remember what a round showed; nothing by default."""


def as_ids(clients: Sequence[int]) -> NDArray[np.int64]:
    """Client indices as an array."""
    return np.asarray(clients, dtype=np.int64)
