"""ZO-AdaMU: zeroth-order steps whose directions lean towards past ones.

    (alpha, beta1, beta2) = anneal(t)
    zdot  ~ N(0, alpha I),   zddot ~ N(m, (1 - alpha) I)
    p  = beta1 zdot + (1 - beta1) zddot;     v = beta2 zdot^2 + (1 - beta2) zddot^2
    g  = [L(w + eps p) - L(w - eps p)] / (2 eps)
    w <- w - eta g p / sqrt(v + sigma);      m <- sign(g) p

S. Jiang et al., "ZO-AdaMU Optimizer: Adapting Perturbation by the Momentum and Uncertainty in
Zeroth-order Optimization", AAAI 2024, https://arxiv.org/abs/2312.15184, algorithm 1: the direction
of the probe is that of the update (the published code has two), and m has the sign of that code.
The three values fall from 1, from step T1 on, in the closed form

    (1 + cos(pi (t - T1) / (T3 - phi (t - T1) (T3 - T2) / (T2 - T1)))) / 2,   constant from T2 on.

Paper and figure differ in phi; ``figure`` reproduces the published curves. T3 is all steps of the
run; T1 and T2 are shares of it; t goes on in rounds that a client misses. ``local_steps`` are H of
every round, ``max_ratio`` is ours. Probes leave rounding behind as in ``mezo`` without ``exact``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt

from fedsim.client import Client, ClientMethod, Update
from fedsim.clients._zeroth import Log, draw_seed, forward_only, memory, slope
from fedsim.directions import ADD_FLOPS, BLOCK, Directions, Kind, Target, add, num_values
from fedsim.errors import PluginError
from fedsim.task import Batch

PHI = {"figure": (0.1, 1.0, 1.5), "text": (1.0, 0.1, 1.5)}
"""phi of alpha, beta1 and beta2."""
Share = Annotated[float, Field(ge=0, le=1)]
Values = tuple[float, float, float]


@dataclass(kw_only=True)
class ZOAdaMU(ClientMethod):
    """Zeroth-order steps with momentum in the perturbation.

    Args:
        learning_rate: Step size. A strategy that sends ``learning-rate`` overrides it.
        eps: Length of a probe.
        local_steps: Steps in a round.
        batch_size: Rows in a batch.
        schedule: Which of the published values of phi, or three of one's own, for alpha, beta1 and
            beta2.
        warmup: T1 as a share of all steps.
        settled: T2 as a share of all steps.
        momentum: Forget m after each round (``reset``; the first step is then a plain one), or
            keep it as the client's state (``keep``; d numbers for each client).
        normalise: Divide by sqrt(v + sigma).
        sigma: Keeps the divisor from 0.
        max_ratio: Bound on each entry of p / sqrt(v + sigma). Without it entries grow without limit
            once beta2 is 0, which the schedule ``figure`` reaches when it has settled.
        loss_clip: Drop steps whose two losses differ by more than this.
        directions: Distribution of the directions.
    """

    needs_state: ClassVar[bool] = True
    backward: ClassVar[bool] = False
    heeds: ClassVar[tuple[str, ...]] = ("learning-rate",)

    learning_rate: PositiveFloat = 1e-3
    eps: PositiveFloat = 1e-3
    local_steps: PositiveInt = 30
    batch_size: PositiveInt = 16
    schedule: Literal["figure", "text"] | tuple[float, float, float] = "figure"
    warmup: Share = 1 / 6
    settled: Share = 2 / 3
    momentum: Literal["reset", "keep"] = "reset"
    normalise: bool = True
    sigma: PositiveFloat = 1e-8
    max_ratio: PositiveFloat | None = None
    loss_clip: PositiveFloat | None = None
    directions: Kind = "gaussian"

    def __post_init__(self) -> None:
        largest = max(self._phi)
        if self.warmup < self.settled and largest * (1 - self.settled) >= 1:
            raise PluginError(
                f"with phi = {largest:g} the schedule has a pole before step T2",
                key=("client", "schedule"),
                hint=f"Let phi (1 - settled) be less than 1; settled is {self.settled:g}",
            )

    @property
    def _phi(self) -> Values:
        return PHI[self.schedule] if isinstance(self.schedule, str) else self.schedule

    def train(self, client: Client) -> Update:
        """Run the local steps and send the difference."""
        log = Log(client)
        with forward_only(client):
            weights = memory(client)
            size = num_values(weights)
            m = client.state.get("m", np.zeros(size, np.float32)).copy()
            first = (client.round - 1) * self.local_steps
            total = client.num_rounds * self.local_steps
            batches = client.batches(self.batch_size, steps=self.local_steps)
            for number, batch in enumerate(batches):
                values = self.anneal(first + number, total) if m.any() else (1.0, 1.0, 1.0)
                seed = draw_seed(client.generator)
                direction = _Direction(Directions(size, self.directions), seed, m, values)
                log.add(number + 1, seed, *self._step(client, batch, weights, direction))
        if self.momentum == "keep":
            client.state["m"] = m
        return client.update(**log.metrics)

    def copies(self) -> int:
        """The received values and the momentum."""
        return 2

    def anneal(self, step: int, total: int) -> Values:
        """alpha, beta1 and beta2 in a step, counted from 0."""
        t1, t2 = self.warmup * total, self.settled * total
        if step < t1 or t2 <= t1:
            return 1.0, 1.0, 1.0
        a, b, c = (annealed(step, t1, t2, total, phi) for phi in self._phi)
        return a, b, c

    def _step(
        self, client: Client, batch: Batch, weights: Target, direction: _Direction
    ) -> tuple[tuple[float, float], float | None]:
        """The two losses of the probe, and the slope along which the weights moved."""
        client.count(3 * ADD_FLOPS * direction.of.size)  # two probes and the step

        def shift(scale: float) -> None:
            for index, slices in enumerate(direction.of.slices(weights)):
                add(slices, np.float32(scale) * direction.block(index)[0])

        shift(self.eps)
        above = client.loss(batch).item()
        shift(-2 * self.eps)
        losses = (above, client.loss(batch).item())
        g = slope(losses, self.eps, self.loss_clip)
        rate = float(client.config.get("learning-rate", self.learning_rate))
        for index, slices in enumerate(direction.of.slices(weights)):
            p, v = direction.block(index)  # of the old m, which is overwritten below
            change = np.float32(self.eps) * p
            if g is not None:
                change -= np.float32(rate * g) * self._update(p, v)
                direction.m[index * BLOCK : index * BLOCK + p.size] = np.sign(np.float32(g)) * p
            add(slices, change)
        return losses, g

    def _update(self, p: NDArray[np.float32], v: NDArray[np.float32]) -> NDArray[np.float32]:
        if not self.normalise:
            return p
        limit = np.inf if self.max_ratio is None else self.max_ratio
        ratio: NDArray[np.float32] = (p / np.sqrt(v + np.float32(self.sigma))).clip(-limit, limit)
        return ratio


@dataclass
class _Direction:
    """p and v of one step, made again block by block from a seed and m."""

    of: Directions
    seed: int
    m: NDArray[np.float32]
    values: Values

    def block(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        alpha, beta1, beta2 = (np.float32(x) for x in self.values)
        dot = np.sqrt(alpha) * self.of.block(self.seed, index)
        if self.values == (1.0, 1.0, 1.0):
            return dot, np.square(dot)
        other = Directions(self.of.size, self.of.kind, stream=1)
        m = self.m[index * BLOCK : index * BLOCK + dot.size]
        ddot = m + np.sqrt(1 - alpha) * other.block(self.seed, index)
        p = beta1 * dot + (1 - beta1) * ddot
        return p, beta2 * np.square(dot) + (1 - beta2) * np.square(ddot)


def annealed(t: float, t1: float, t2: float, t3: float, phi: float) -> float:
    """A value that is 1 until ``t1`` and falls until ``t2``.

    >>> [round(annealed(2 / 3, 1 / 6, 2 / 3, 1, phi), 4) for phi in (0.1, 1.0, 1.5)]
    [0.4729, 0.1464, 0.0]
    """
    since = min(t, t2) - t1
    if since < 0:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * since / (t3 - phi * since * (t3 - t2) / (t2 - t1))))
