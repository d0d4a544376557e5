"""FedVARP: the latest updates of all clients take the variance of partial participation away.

    w   <- w + eta (mean_{i took part} (Delta_i - y_i) + mean_{all i} y_i)
    y_i <- Delta_i  for those who took part;  y_i = 0 before

D. Jhunjhunwala, P. Sharma, A. Nagarkatti, G. Joshi, "FedVARP: Tackling the Variance Due to Partial
Client Participation in Federated Learning", UAI 2022, https://arxiv.org/abs/2207.14130 (algorithm
1, without clusters). The server keeps an update for each client that was seen.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.arrays import Arrays, add, scale
from fedsim.strategies.mifa import MIFA
from fedsim.strategy import State


@dataclass(kw_only=True)
class FedVARP(MIFA):
    """Participants' updates, corrected by what is remembered of them and of all others.

    Args:
        server_learning_rate: Step along the corrected mean (eta).
    """

    def server_update(self, weights: Arrays, delta: Arrays, state: State) -> Arrays:
        """Step along the mean change plus the mean of the old memory."""
        step = add(delta, state["mean"]) if "mean" in state else delta
        self.new_mean(delta, state)
        return add(weights, scale(step, self.server_learning_rate))
