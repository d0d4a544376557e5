"""FedAdam: the server treats the mean delta as a gradient for Adam.

    m  <- beta_1 m + (1 - beta_1) delta
    v  <- beta_2 v + (1 - beta_2) delta^2
    w  <- w + eta_t * m / (sqrt(v) + tau),   eta_t = eta sqrt(1 - beta_2^(t+1)) / (1 - beta_1^(t+1))

S. Reddi et al., "Adaptive Federated Optimization", ICLR 2021, https://arxiv.org/abs/2003.00295
(algorithm 2). The bias correction, with t + 1 in round t, is Flower's addition; the paper has none
(``bias_correction: false``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field, PositiveFloat

from fedsim.arrays import Arrays, norm
from fedsim.strategy import DeltaStrategy, State


@dataclass(kw_only=True)
class FedAdam(DeltaStrategy):
    """Adam on the server.

    Args:
        eta: Server learning rate.
        beta_1: Decay of the first moment.
        beta_2: Decay of the second moment.
        tau: Added to the denominator; the degree of adaptivity.
        bias_correction: Flower's correction of the first rounds.
    """

    eta: PositiveFloat = 0.1
    beta_1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta_2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    tau: PositiveFloat = 1e-3
    bias_correction: bool = True

    def server_update(self, weights: Arrays, delta: Arrays, state: State) -> Arrays:
        """Update both moments, then step."""
        zeros = {k: np.zeros_like(x) for k, x in delta.items()}
        m, v = state.get("m", zeros), state.get("v", zeros)
        state["m"] = {k: self.beta_1 * m[k] + (1 - self.beta_1) * delta[k] for k in delta}
        state["v"] = {k: self.beta_2 * v[k] + (1 - self.beta_2) * delta[k] ** 2 for k in delta}
        state["t"] = state.get("t", 0) + 1
        eta = self._step_size(state["t"])
        self.note(momentum_norm=norm(state["m"]), second_moment_norm=norm(state["v"]))
        return {
            k: w + eta * state["m"][k] / (np.sqrt(state["v"][k]) + self.tau)
            for k, w in weights.items()
        }

    def _step_size(self, t: int) -> float:
        if not self.bias_correction:
            return self.eta
        correction: float = (1 - self.beta_2 ** (t + 1)) ** 0.5 / (1 - self.beta_1 ** (t + 1))
        return self.eta * correction
