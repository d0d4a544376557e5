"""L-GreCo: the cheapest choice of one compression parameter per layer under an error budget.

    minimise    sum_l size[l][c_l]
    subject to  sum_l error[l][c_l] <= slack * sum_l error[l][reference]

M. Alimohammadi, I. Markov, E. Frantar, D. Alistarh, "L-GreCo: Layerwise-Adaptive Gradient
Compression for Efficient and Accurate Deep Learning", MLSys 2024, https://arxiv.org/abs/2210.17357.
A knapsack, solved by dynamic programming over errors in units of budget / buckets. Errors are
norms, as in the released code, or squared norms, as in the analysis of contractions. Here the
server plans, on the change of the weights since its last plan, and sends each layer's choice (a
byte) with every broadcast; sizes are those of encoded payloads. Ours, against the released code: an
error may fill the budget exactly, and where rounding up leaves nothing cheaper, the reference is
kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.arrays import Arrays, subtract
from fedsim.codec import Codec, Payload, Sender
from fedsim.errors import PluginError

Table = NDArray[np.float64]
"""One row a layer, one column a candidate."""


def solve(sizes: Table, errors: Table, budget: float, buckets: int = 10_000) -> list[int]:
    """The candidate of each layer with the smallest total size within the error budget.

    Args:
        sizes: Size of each layer under each candidate.
        errors: Its error.
        budget: What the errors may add up to.
        buckets: Resolution of the errors: they are rounded up to budget / buckets.

    Returns:
        A column for each layer; empty when rounding leaves no choice within the budget.

    >>> errors = np.array([[4, 2, 1], [3, 2, 0.5], [6, 3, 0]])
    >>> sizes = np.array([[1.0, 2, 4], [10, 20, 40], [2, 4, 8]])
    >>> solve(sizes, errors, budget=errors[:, 1].sum())
    [2, 0, 1]
    """
    rows = np.arange(len(sizes))
    for rounded in (np.floor, np.ceil):  # rounded down, a plan is the best if it is one at all
        with np.errstate(divide="ignore", invalid="ignore"):
            steps = np.minimum(rounded(np.nan_to_num(errors * buckets / budget)), buckets + 1)
        plan = _knapsack(sizes, steps.astype(int), buckets)
        if plan and errors[rows, plan].sum() <= budget * (1 + 1e-12):
            return plan
    return []


def _knapsack(sizes: Table, steps: NDArray[Any], buckets: int) -> list[int]:
    """The cheapest columns whose steps add up to ``buckets`` at most; empty if there are none."""
    best = np.zeros(buckets + 1)
    chosen = []
    for layer_sizes, layer_steps in zip(sizes, steps, strict=True):
        options = np.full((len(layer_sizes), buckets + 1), np.inf)
        for c, (size, step) in enumerate(zip(layer_sizes, layer_steps, strict=True)):
            if step <= buckets:
                options[c, step:] = best[: buckets + 1 - step] + size
        chosen.append(options.argmin(axis=0))
        best = options.min(axis=0)
    if not np.isfinite(best[-1]):
        return []
    at = int(best.argmin())
    plan: list[int] = []
    for columns, layer_steps in zip(reversed(chosen), steps[::-1], strict=True):
        plan.append(int(columns[at]))
        at -= int(layer_steps[plan[-1]])
    return plan[::-1]


class Planner:
    """Chooses, every few rounds, the planned option of an uplink codec for each array.

    Args:
        codec: The uplink codec.
        every: Rounds between plans.
        slack: Error budget in units of the reference's error.
        squared: Add up squared norms instead of norms.
        buckets: Resolution of the dynamic program.
    """

    def __init__(
        self, codec: Codec, *, every: int, slack: float, squared: bool, buckets: int
    ) -> None:
        if not codec.planned:
            raise PluginError(
                "there is nothing to plan in this codec",
                key=("codec", "lgreco"),
                allowed="Codecs with a planned option: topk, qsgd, powersgd",
            )
        self.codec = codec
        self.every, self.slack, self.squared, self.buckets = every, slack, squared, buckets
        self.plan = b""
        self._weights: Arrays = {}
        self._rounds = 0

    def observe(self, weights: Arrays) -> bytes:
        """Look at the weights that are about to be sent; returns the plan to send with them."""
        if not self._weights:
            self._weights = weights
            self.plan = bytes([self._reference()] * len(weights))
        elif self._rounds % self.every == 0:
            self.plan = self._solved(subtract(weights, self._weights))
            self._weights = weights
        self._rounds += 1
        return self.plan

    @property
    def chosen(self) -> list[float]:
        """The planned option's value for each array, as last sent."""
        candidates = self.codec.candidates()
        return [candidates[i] for i in self.plan]

    def _reference(self) -> int:
        candidates = np.asarray(self.codec.candidates())
        return int(np.abs(candidates - self.codec.reference()).argmin())

    def _solved(self, update: Arrays) -> bytes:
        sizes, errors = tables(self.codec, update)
        errors = errors**2 if self.squared else errors
        reference = self._reference()
        plan = solve(sizes, errors, self.slack * float(errors[:, reference].sum()), self.buckets)
        whole = sum(sizes[layer][c] for layer, c in enumerate(plan))
        if not plan or (self.slack >= 1 and whole > sizes[:, reference].sum()):
            plan = [reference] * len(update)
        return bytes(plan)

    @property
    def memory(self) -> dict[str, Any]:
        """All of it, for a checkpoint."""
        return {"plan": self.plan, "weights": self._weights, "rounds": self._rounds}

    def restore(self, memory: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.plan, self._weights = memory["plan"], dict(memory["weights"])
        self._rounds = memory["rounds"]


def tables(codec: Codec, update: Arrays) -> tuple[Table, Table]:
    """Encoded bytes and error norms of each array under each candidate.

    A codec that starts from its last message (PowerSGD) encodes each array five times.
    """
    codec = getattr(codec, "inner", codec)  # without error feedback
    candidates: Sequence[float] = codec.candidates()
    sizes, errors = np.zeros((2, len(update), len(candidates)))
    for layer, (name, x) in enumerate(update.items()):
        for c, candidate in enumerate(candidates):
            state: Arrays = {}
            for _ in range(5 if codec.stateful else 1):
                payload = codec.encode({name: x}, state, Sender(plan={name: candidate}))
            decoded = codec.decode(Payload(payload.data), {name: x})[name]
            sizes[layer, c] = payload.num_bytes
            errors[layer, c] = np.linalg.norm((x - decoded).astype(np.float64))
    return sizes, errors
