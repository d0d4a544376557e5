"""FedAU: averaging that learns how often each client takes part, and weighs it by the inverse.

    t = 0, 1, ...; I_n^t = 1 where client n took part in round t; omega_n = 1, M_n = 0, S_n = 0
    S_n <- S_n + 1;  where I_n^(t-1) = 1 or S_n = K:
        omega_n <- (M_n omega_n + S_n) / (M_n + 1),  M_n <- M_n + 1,  S_n <- 0
    w <- w + (eta / N) sum_{n took part} omega_n^t Delta_n

S. Wang, M. Ji, "A Lightweight Method for Tackling Unknown Participation Statistics in Federated
Averaging", ICLR 2024, https://arxiv.org/abs/2306.03401, as in IBM/fedau. The recursion runs on the
server; for absent clients it is caught up with when they come back, so that only clients that were
seen take memory. ``cutoff: 1`` is the paper's "average over all".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pydantic import PositiveFloat, PositiveInt

from fedsim.arrays import Arrays, add, scale
from fedsim.strategy import DeltaStrategy, State


class Gaps(NamedTuple):
    """What is known of a client's gaps between participations.

    Attributes:
        finished: Number of finished gaps (M).
        mean: Their mean length, the weight (omega).
        since: Round in which the current gap began (there S = 0).
    """

    finished: int = 0
    mean: float = 1.0
    since: int = 0

    def until(self, t: int, cutoff: float) -> Gaps:
        """The same at the beginning of round ``t``, of which the client missed those between.

        >>> Gaps().until(7, cutoff=3)
        Gaps(finished=2, mean=3.0, since=6)
        """
        cuts = 0 if math.isinf(cutoff) else int((t - self.since) // cutoff)
        if not cuts:
            return self
        finished = self.finished + cuts
        mean = (self.finished * self.mean + cuts * cutoff) / finished
        return Gaps(finished, mean, self.since + cuts * int(cutoff))

    def closed(self, t: int) -> Gaps:
        """The same at the beginning of round ``t + 1``, after taking part in round ``t``."""
        mean = (self.finished * self.mean + t + 1 - self.since) / (self.finished + 1)
        return Gaps(self.finished + 1, mean, t + 1)


@dataclass(kw_only=True)
class FedAU(DeltaStrategy):
    """Weights from the observed gaps between participations; all clients count alike.

    Args:
        cutoff: Longest gap (K), in rounds; a client that is rarer is weighed as if it were not. The
            paper recommends 50; none is infinity, the default of its code.
        server_learning_rate: Step along the sum (eta).
    """

    cutoff: PositiveInt | None = 50
    server_learning_rate: PositiveFloat = 1.0

    def client_weights(self, server_round: int, clients: Sequence[int]) -> Mapping[int, float]:
        """Each client's mean gap so far."""
        self.state["round"] = server_round
        return {client: self._gaps(client, server_round - 1).mean for client in clients}

    def server_update(self, weights: Arrays, delta: Arrays, state: State) -> Arrays:
        """Step along the weighted sum over all N clients, and note who took part."""
        now = state.get("round", 1) - 1
        seen = state.setdefault("gaps", {})
        for client in self.cohort:
            seen[client] = tuple(self._gaps(client, now).closed(now))
        step = self.server_learning_rate * self.total_weight / (self.num_clients or 1)
        return add(weights, scale(delta, step))

    def _gaps(self, client: int, t: int) -> Gaps:
        known = Gaps(*self.state.get("gaps", {}).get(client, ()))
        return known.until(t, math.inf if self.cutoff is None else self.cutoff)
