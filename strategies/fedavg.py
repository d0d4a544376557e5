"""FedAvg: the server moves to the weighted mean of the clients' models.

    delta   = sum_k n_k (w_k - w) / sum_k n_k
    w      <- w + server_learning_rate * delta

H. B. McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
AISTATS 2017, https://arxiv.org/abs/1602.05629. The server learning rate is that of Reddi et al.
(FedOpt); 1 is the published FedAvg.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import PositiveFloat

from fedsim.arrays import Arrays, add, scale
from fedsim.strategy import DeltaStrategy, State


@dataclass(kw_only=True)
class FedAvg(DeltaStrategy):
    """Weighted average of client models.

    Args:
        server_learning_rate: Step along the mean delta; 1 replaces the model by the average.
    """

    server_learning_rate: PositiveFloat = 1.0

    def server_update(self, weights: Arrays, delta: Arrays, state: State) -> Arrays:
        """One step along the mean delta."""
        return add(weights, scale(delta, self.server_learning_rate))
