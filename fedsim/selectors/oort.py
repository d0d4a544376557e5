"""Oort: clients with a large loss and a fast device first, some new ones always.

    U_i = n_i * loss_i + sqrt(0.1 ln(round) / last_i),   times (T / t_i)^alpha  if t_i > T
    (1 - eps) of the round: the largest U among known available clients; eps: clients never tried

F. Lai et al., "Oort: Efficient Federated Learning via Guided Participant Selection", OSDI 2021,
https://arxiv.org/abs/2010.06081. Simplified: the loss is the round's mean loss (Oort: root mean
square over examples), the preferred time T is a percentile of the times seen (Oort: a pacer that
enlarges it while the loss stalls), and utilities are capped, not sampled. Defaults of alpha, eps
and the cap follow the paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field, NonNegativeFloat

from fedsim.selection import Outcome, Pool, Selector, State, as_ids

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


@dataclass(kw_only=True)
class Oort(Selector):
    """Guided choice by statistical and system utility.

    Args:
        alpha: How hard slow clients are punished; 0 ignores speed.
        preferred_percentile: Percentile of the times seen that counts as fast enough.
        exploration: Share of a round for clients never tried, at first.
        exploration_decay: Factor on it for each round.
        least_exploration: It falls no further than this.
        cap_percentile: Utilities above this percentile count as equal.
    """

    alpha: NonNegativeFloat = 2.0
    preferred_percentile: Annotated[float, Field(gt=0.0, le=100.0)] = 50.0
    exploration: Fraction = 0.9
    exploration_decay: Fraction = 0.98
    least_exploration: Fraction = 0.2
    cap_percentile: Annotated[float, Field(gt=0.0, le=100.0)] = 95.0

    def choose(self, wanted: int, pool: Pool, state: State) -> list[int]:
        """The best known clients, and new ones."""
        share = self.exploration * self.exploration_decay ** (pool.server_round - 1)
        new = round(max(self.least_exploration, share) * wanted)
        known = as_ids(state.get("clients", []))
        best = self._best(wanted - new, pool, state) if len(known) else []
        seen = {*known.tolist()}
        sample = pool.sample(wanted + len(best) + new)
        fresh = [c for c in sample if c not in seen][: wanted - len(best)]
        rest = [c for c in sample if c not in {*best, *fresh}]
        return (best + fresh + rest)[:wanted]

    def _best(self, count: int, pool: Pool, state: State) -> list[int]:
        clients = state["clients"]
        here = np.flatnonzero(pool.available(clients))
        utility = self.utility(pool.server_round, state)[here]
        if not len(here) or count <= 0:
            return []
        utility = np.minimum(utility, np.percentile(utility, self.cap_percentile))
        order = np.lexsort((pool.generator.random(len(here)), -utility))
        return [int(c) for c in clients[here[order[:count]]]]

    def utility(self, server_round: int, state: State) -> np.ndarray:
        """Utilities of the known clients, in the state's order."""
        seconds = np.maximum(state["seconds"], 1e-9)
        preferred = np.percentile(seconds, self.preferred_percentile)
        age = np.sqrt(0.1 * math.log(max(server_round, 1)) / np.maximum(state["last"], 1))
        speed = np.where(seconds > preferred, (preferred / seconds) ** self.alpha, 1.0)
        return np.asarray((state["gain"] + age) * speed)

    def learn(self, server_round: int, outcomes: Sequence[Outcome], state: State) -> None:
        """Keep each client's latest loss, time and round."""
        old = {
            int(c): (g, s, n)
            for c, g, s, n in zip(
                *(state.get(k, []) for k in ("clients", "gain", "seconds", "last")), strict=True
            )
        }
        for seen in outcomes:
            gain = 0.0 if seen.loss is None or not seen.answered else seen.loss
            old[seen.client] = (gain * seen.num_examples, seen.seconds, server_round)
        order = sorted(old)
        state["clients"] = as_ids(order)
        for i, key in enumerate(("gain", "seconds", "last")):
            state[key] = np.array([float(old[c][i]) for c in order])
