"""AFA-CD: anarchic clients, cross-device: the server averages whatever comes.

    a worker pulls x_mu when it likes, runs K steps of its own choosing at rate eta_L, and pushes
    G = (x_mu - x^K) / (eta_L K), its mean gradient
    after m pushes:  x <- x - eta (1/m) sum G

H. Yang, X. Zhang, P. Khanduri, J. Liu, "Anarchic Federated Learning", ICML 2022,
https://arxiv.org/abs/2108.09875; the pseudo-code is from memory of the paper, no official code was
found. Deltas travel, so that the server divides by K alone: ``server_learning_rate`` is
eta / eta_L, and the mean of K matches FedAvg. With another local optimizer than plain SGD, G is
defined by the displacement. Busy workers count more often: the result is biased towards them.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from fedsim.arrays import Arrays, add, scale
from fedsim.event_strategy import EventStrategy, Push
from fedsim.strategy import State


@dataclass(kw_only=True)
class AFACD(EventStrategy):
    """Mean of the next pushes, each normalised by its local steps.

    Args:
        buffer_size: Pushes that make an update (m); one worker may send several of them.
        server_learning_rate: Step along the mean displacement per local step (eta / eta_L).
        max_staleness: Pushes that are older are dropped.
    """

    buffer_size: PositiveInt = 1
    server_learning_rate: PositiveFloat = 1.0
    max_staleness: NonNegativeInt | None = None

    def arrive(self, push: Push, weights: Arrays, state: State) -> Arrays | None:
        """Collect; the mean after m pushes."""
        term = scale(push.delta, 1.0 / push.local_steps)
        state["sum"] = add(state["sum"], term) if "sum" in state else term
        state["count"] = state.get("count", 0) + 1
        if state["count"] < self.buffer_size:
            return None
        del state["count"]
        return scale(state.pop("sum"), 1.0 / self.buffer_size)

    def server_update(self, weights: Arrays, delta: Arrays, state: State) -> Arrays:
        """One step."""
        return add(weights, scale(delta, self.server_learning_rate))
