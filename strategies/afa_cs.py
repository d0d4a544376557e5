"""AFA-CS: anarchic clients, cross-silo: the server remembers everyone's latest push.

    H_i <- 0 for all M workers; a worker pushes G = (x_mu - x^K) / (eta_L K), its mean gradient
    after m pushes:  H_i <- G_i for those who sent them,  x <- x - eta (1/M) sum_{all i} H_i

H. Yang, X. Zhang, P. Khanduri, J. Liu, "Anarchic Federated Learning", ICML 2022,
https://arxiv.org/abs/2108.09875; the pseudo-code is from memory of the paper, no official code was
found. Every worker counts alike however often it comes, so that there is no bias towards busy ones.
Deltas travel, so that the server divides by K alone: ``server_learning_rate`` is eta / eta_L. The
mean is over all M from the start: steps are short until all were seen. The server keeps an array
set for each client that was seen, and their running sum.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.arrays import Arrays, add, scale, subtract
from fedsim.event_strategy import Push
from fedsim.strategies.afa_cd import AFACD
from fedsim.strategy import State


@dataclass(kw_only=True)
class AFACS(AFACD):
    """Mean over all workers of their latest pushes, each normalised by its local steps.

    Args:
        buffer_size: Pushes that make an update (m).
        server_learning_rate: Step along the mean displacement per local step (eta / eta_L).
        max_staleness: Pushes that are older are dropped.
    """

    def arrive(self, push: Push, weights: Arrays, state: State) -> Arrays | None:
        """Replace the worker's memory; the mean over all after m pushes."""
        memory = state.setdefault("memory", {})
        latest = scale(push.delta, 1.0 / push.local_steps)
        change = subtract(latest, memory[push.client]) if push.client in memory else latest
        memory[push.client] = latest
        state["sum"] = add(state["sum"], change) if "sum" in state else change
        state["count"] = state.get("count", 0) + 1
        if state["count"] < self.buffer_size:
            return None
        del state["count"]
        return scale(state["sum"], 1.0 / (self.num_clients or 1))
