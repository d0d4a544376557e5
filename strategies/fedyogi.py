"""FedYogi: Adam's cousin whose second moment changes by a bounded amount.

    m  <- beta_1 m + (1 - beta_1) delta
    v  <- v - (1 - beta_2) delta^2 sign(v - delta^2)
    w  <- w + eta * m / (sqrt(v) + tau)

S. Reddi et al., "Adaptive Federated Optimization", ICLR 2021, https://arxiv.org/abs/2003.00295
(algorithm 2; as in Flower, v starts at zero).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field, PositiveFloat

from fedsim.arrays import Arrays, norm
from fedsim.strategy import DeltaStrategy, State


@dataclass(kw_only=True)
class FedYogi(DeltaStrategy):
    """Yogi on the server.

    Args:
        eta: Server learning rate.
        beta_1: Decay of the first moment.
        beta_2: Decay of the second moment.
        tau: Added to the denominator; the degree of adaptivity.
    """

    eta: PositiveFloat = 0.01
    beta_1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta_2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    tau: PositiveFloat = 1e-3

    def server_update(self, weights: Arrays, delta: Arrays, state: State) -> Arrays:
        """Update both moments, then step."""
        zeros = {k: np.zeros_like(x) for k, x in delta.items()}
        m, v = state.get("m", zeros), state.get("v", zeros)
        square = {k: x**2 for k, x in delta.items()}
        state["m"] = {k: self.beta_1 * m[k] + (1 - self.beta_1) * delta[k] for k in delta}
        state["v"] = {
            k: v[k] - (1 - self.beta_2) * square[k] * np.sign(v[k] - square[k]) for k in delta
        }
        self.note(momentum_norm=norm(state["m"]), second_moment_norm=norm(state["v"]))
        return {
            k: w + self.eta * state["m"][k] / (np.sqrt(state["v"][k]) + self.tau)
            for k, w in weights.items()
        }
