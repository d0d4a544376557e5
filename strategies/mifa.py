"""MIFA: every client's latest update enters every round, however old it is.

    y_i <- Delta_i  for those who took part;  y_i = 0 before
    w   <- w + eta mean_{all i} y_i

X. Gu, K. Huang, J. Zhang, L. Huang, "Fast Federated Learning in the Presence of Arbitrary Device
Unavailability", NeurIPS 2021, https://arxiv.org/abs/2106.04159. The paper lets every client take
part in the first round; here, as in IBM/fedau, updates are zero until a client was seen. The server
keeps an update for each client that was seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from pydantic import PositiveFloat

from fedsim.arrays import Arrays, add, norm, scale, subtract
from fedsim.strategy import DeltaStrategy, State


@dataclass(kw_only=True)
class MIFA(DeltaStrategy):
    """Mean of all clients' latest updates; all clients count alike.

    Args:
        server_learning_rate: Step along the mean (eta).
    """

    additive: ClassVar[bool] = False

    server_learning_rate: PositiveFloat = 1.0

    def client_weights(self, server_round: int, clients: Sequence[int]) -> Mapping[int, float]:
        """All alike."""
        return dict.fromkeys(clients, 1.0)

    def correct(self, client: int, delta: Arrays, state: State) -> Arrays:
        """Replace the client's memory; what enters the mean is the change."""
        memory = state.setdefault("memory", {})
        change = subtract(delta, memory[client]) if client in memory else delta
        memory[client] = delta
        return change

    def server_update(self, weights: Arrays, delta: Arrays, state: State) -> Arrays:
        """Step along the mean of the new memory."""
        return add(weights, scale(self.new_mean(delta, state), self.server_learning_rate))

    def new_mean(self, change: Arrays, state: State) -> Arrays:
        """Mean of the memory over all N clients, kept up to date by the mean change."""
        zeros = {name: np.zeros_like(x) for name, x in change.items()}
        share = self.total_weight / (self.num_clients or 1)
        state["mean"] = add(state.get("mean", zeros), scale(change, share))
        self.note(memory_norm=norm(state["mean"]))
        return state["mean"]  # type: ignore[no-any-return]
