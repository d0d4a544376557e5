"""FedAvgM: FedAvg with heavy-ball momentum on the server.

    v  <- server_momentum * v + delta
    w  <- w + server_learning_rate * v

T.-M. H. Hsu, H. Qi, M. Brown, "Measuring the Effects of Non-Identical Data Distribution for
Federated Visual Classification", 2019, https://arxiv.org/abs/1909.06335. As in Flower, momentum is
not dampened and not Nesterov; 0 is FedAvg.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, PositiveFloat

from fedsim.arrays import Arrays, add, norm, scale
from fedsim.strategy import DeltaStrategy, State


@dataclass(kw_only=True)
class FedAvgM(DeltaStrategy):
    """Weighted average with server momentum.

    Args:
        server_learning_rate: Step along the momentum.
        server_momentum: Share of the previous momentum that is kept.
    """

    server_learning_rate: PositiveFloat = 1.0
    server_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9

    def server_update(self, weights: Arrays, delta: Arrays, state: State) -> Arrays:
        """Update the momentum, then step along it."""
        if "momentum" in state:
            delta = add(scale(state["momentum"], self.server_momentum), delta)
        state["momentum"] = delta
        self.note(momentum_norm=norm(delta))
        return add(weights, scale(delta, self.server_learning_rate))
