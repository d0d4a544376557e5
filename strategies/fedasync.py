"""FedAsync: each client's model is mixed into the server's as soon as it comes.

    on a model x_new that started from version mu, at version t, with tau = t - mu:
    x <- (1 - alpha_t) x + alpha_t x_new,   alpha_t = alpha s(tau)
    s(tau) = 1 (constant), (tau + 1)^-a (polynomial), or
             1 up to tau = b, then 1 / (a (tau - b) + 1) (hinge)

C. Xie, S. Koyejo, I. Gupta, "Asynchronous Federated Optimization", 2019,
https://arxiv.org/abs/1903.03934. The paper's local proximal term is the client ``fedprox``
(``proximal_mu`` is its rho). alpha_t is computed afresh for every answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt

from fedsim.arrays import Arrays, add, scale, subtract
from fedsim.event_strategy import EventStrategy, Push
from fedsim.strategy import State


@dataclass(kw_only=True)
class FedAsync(EventStrategy):
    """Staleness-weighted mixing of single models.

    Args:
        alpha: Weight of a fresh model.
        staleness: How the weight falls with staleness (s).
        a: Steepness of s; none is 0.5 for ``polynomial`` and 10 for ``hinge``.
        b: Staleness up to which ``hinge`` weighs fully.
        max_staleness: Answers that are older are dropped.
    """

    alpha: Annotated[float, Field(gt=0, le=1)] = 0.6
    staleness: Literal["constant", "polynomial", "hinge"] = "polynomial"
    a: NonNegativeFloat | None = None
    b: NonNegativeFloat = 4.0
    max_staleness: NonNegativeInt | None = None

    def arrive(self, push: Push, weights: Arrays, state: State) -> Arrays:
        """Part of the way to the client's model."""
        model = add(push.received, push.delta)
        return scale(subtract(model, weights), self.alpha * self.weight(push.staleness))

    def weight(self, tau: int) -> float:
        """The function s of staleness."""
        if self.staleness == "polynomial":
            return polynomial(tau, 0.5 if self.a is None else self.a)
        if self.staleness == "hinge":
            return hinge(tau, 10.0 if self.a is None else self.a, self.b)
        return 1.0


def polynomial(tau: float, a: float) -> float:
    """The staleness weight (tau + 1)^-a.

    >>> polynomial(3, 0.5)
    0.5
    """
    return float((tau + 1) ** -a)


def hinge(tau: float, a: float, b: float) -> float:
    """The staleness weight 1 up to b, then 1 / (a (tau - b) + 1).

    >>> hinge(4, 10, 4), hinge(6, 10, 4) == 1 / 21
    (1.0, True)
    """
    return 1.0 if tau <= b else 1.0 / (a * (tau - b) + 1)
