"""CO2: the next cohort trains while the answers of the last one still travel; outer momentum.

    Delta = x[t-1] - mean of the clients' weights after round t-1          arrives one round late
    gap   = 1 + |x[t] - x[t-1]| / mean over s <= t of |x[s] - x[s-1]|      "gap_aware"
    m     <- clip(server_momentum * m + Delta / gap, -clip, clip)          element by element
    x[t+1] = x[t] - server_learning_rate * m;     x[1] = x[0]

W. Sun, Z. Qin, W. Sun, S. Li, D. Li, X. Shen, Y. Qiao, Y. Zhong, "CO2: Efficient Distributed
Training with Full Communication-Computation Overlap", ICLR 2024, https://arxiv.org/abs/2401.16265.
The delay is kept as the paper has it: Delta belongs to the point from which it was computed, and a
round's own work enters one round later. On the virtual clock a round takes the longer of computing
and communication, not their sum. The released code has a constant gap of 1 and a clip without
effect; the formula of "gap_aware" is ours, since the paper's could not be confirmed. Clients start
each round with a fresh optimizer; ``delay: 0`` is SlowMo, and with ``server_momentum: 0`` FedAvg.
The last round's answers are still on their way when the run ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, PositiveFloat

from fedsim.arrays import Arrays, add, distance, norm, scale
from fedsim.strategy import DeltaStrategy, State

EPSILON = 1e-12


@dataclass(kw_only=True)
class CO2(DeltaStrategy):
    """Delayed averaging with staleness gap penalty, outer momentum and its clipping.

    Args:
        server_learning_rate: Step along the momentum.
        server_momentum: Share of the previous momentum that is kept; large ones oscillate with the
            delay.
        delay: Rounds between the clients' work and its use.
        gap: What divides a late update: 1, a number of at least 1, or the movement since then.
        clip: Largest absolute entry of the momentum; none by default.
    """

    server_learning_rate: PositiveFloat = 1.0
    server_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.2
    delay: Literal[0, 1] = 1
    gap: Literal["none", "gap_aware"] | Annotated[float, Field(ge=1)] = "none"
    clip: PositiveFloat | None = None

    @property
    def overlaps(self) -> bool:  # type: ignore[override]
        """Whether a cohort trains while the answers before it travel."""
        return self.delay == 1

    def server_update(self, weights: Arrays, delta: Arrays, state: State) -> Arrays:
        """Step by what arrived; what the clients have just sent waits for the next round."""
        gap = self._gap(weights, state)
        self.note(staleness_gap=gap)
        arrived = delta
        if self.delay:
            arrived, state["pending"] = state.get("pending", {}), delta
        if not arrived:
            return weights
        step = scale(arrived, 1 / gap)
        if "momentum" in state:
            step = add(scale(state["momentum"], self.server_momentum), step)
        if self.clip is not None:
            self.note(clipped_share=_share_beyond(step, self.clip))
            step = {n: np.asarray(np.clip(x, -self.clip, self.clip)) for n, x in step.items()}
        self.note(momentum_norm=norm(step))
        state["momentum"] = step
        return add(weights, scale(step, self.server_learning_rate))

    def _gap(self, weights: Arrays, state: State) -> float:
        """How stale the arriving update is, at least 1; remembers where the model moved."""
        if self.gap != "gap_aware":
            return 1.0 if self.gap == "none" else self.gap
        if "start" not in state:
            state.update(start=weights, moved=0.0, moves=0)
            return 1.0
        moved = distance(weights, state["start"])
        state.update(start=weights, moved=state["moved"] + moved, moves=state["moves"] + 1)
        pace: float = state["moved"] / state["moves"]
        return 1.0 + moved / (pace + EPSILON)


def _share_beyond(arrays: Arrays, limit: float) -> float:
    """Share of entries that are longer than a limit."""
    beyond = sum(int(np.count_nonzero(np.abs(x) > limit)) for x in arrays.values())
    return beyond / sum(x.size for x in arrays.values())
