"""FedAdagrad: the server treats the mean delta as a gradient for Adagrad.

    m  <- delta
    v  <- v + delta^2
    w  <- w + eta * m / (sqrt(v) + tau)

S. Reddi et al., "Adaptive Federated Optimization", ICLR 2021, https://arxiv.org/abs/2003.00295
(algorithm 2 with beta_1 = 0, as in Flower).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydantic import PositiveFloat

from fedsim.arrays import Arrays, norm
from fedsim.strategy import DeltaStrategy, State


@dataclass(kw_only=True)
class FedAdagrad(DeltaStrategy):
    """Adagrad on the server.

    Args:
        eta: Server learning rate.
        tau: Added to the denominator; the degree of adaptivity.
    """

    eta: PositiveFloat = 0.1
    tau: PositiveFloat = 1e-3

    def server_update(self, weights: Arrays, delta: Arrays, state: State) -> Arrays:
        """Accumulate squares, then step."""
        v = state.get("v") or {k: np.zeros_like(x) for k, x in delta.items()}
        state["v"] = {k: v[k] + delta[k] ** 2 for k in delta}
        self.note(second_moment_norm=norm(state["v"]))
        return {
            k: w + self.eta * delta[k] / (np.sqrt(state["v"][k]) + self.tau)
            for k, w in weights.items()
        }
