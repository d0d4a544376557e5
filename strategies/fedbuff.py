"""FedBuff: the server moves whenever a buffer of answers is full.

    on a delta that is tau versions old:  buffer <- buffer + s(tau) delta,  s(tau) = (1 + tau)^-a
    after buffer_size answers:  v <- server_momentum v + buffer / normaliser
                                x <- x + server_learning_rate v;  empty the buffer

J. Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation", AISTATS 2022,
https://arxiv.org/abs/2106.06639. The paper divides by ``buffer_size``, so that stale buffers make
shorter steps; FLSim, by its authors, divides by the sum of the weights. A buffer that is not full
when the run ends is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from fedsim.arrays import Arrays, add, norm, scale
from fedsim.event_strategy import EventStrategy, Push
from fedsim.strategies.fedasync import polynomial
from fedsim.strategy import State


@dataclass(kw_only=True)
class FedBuff(EventStrategy):
    """Buffered averaging with staleness weights.

    Args:
        buffer_size: Answers that make an update (K).
        staleness_exponent: How fast weights fall with staleness (a); 0 weighs all alike.
        normaliser: ``buffer_size`` as in the paper; ``weights`` divides by their sum as in FLSim;
            ``examples`` too, with weights multiplied by the clients' rows.
        server_learning_rate: Step along the mean, or along its momentum.
        server_momentum: Share of the previous momentum that is kept.
        max_staleness: Answers that are older are dropped.
    """

    buffer_size: PositiveInt = 10
    staleness_exponent: NonNegativeFloat = 0.5
    normaliser: Literal["buffer_size", "weights", "examples"] = "buffer_size"
    server_learning_rate: PositiveFloat = 1.0
    server_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    max_staleness: NonNegativeInt | None = None

    def arrive(self, push: Push, weights: Arrays, state: State) -> Arrays | None:
        """Collect; the mean once the buffer is full."""
        weight = polynomial(push.staleness, self.staleness_exponent)
        if self.normaliser == "examples":
            weight *= push.num_examples
        term = scale(push.delta, weight)
        state["buffer"] = add(state["buffer"], term) if "buffer" in state else term
        state["count"] = state.get("count", 0) + 1
        state["weight"] = state.get("weight", 0.0) + weight
        if state["count"] < self.buffer_size:
            return None
        total = self.buffer_size if self.normaliser == "buffer_size" else state["weight"]
        mean = scale(state.pop("buffer"), 1.0 / total)
        del state["count"], state["weight"]
        return mean

    def server_update(self, weights: Arrays, delta: Arrays, state: State) -> Arrays:
        """Update the momentum, then step along it."""
        if self.server_momentum and "momentum" in state:
            delta = add(scale(state["momentum"], self.server_momentum), delta)
        if self.server_momentum:
            state["momentum"] = delta
            self.note(momentum_norm=norm(delta))
        return add(weights, scale(delta, self.server_learning_rate))
