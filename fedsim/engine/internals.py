"""What a round was like inside, measured on the way: norms, what codecs lose, agreement of clients.

``of_round`` puts a round together from what was measured of each update (``update_norms``) and what
the strategy noted of itself (``DeltaStrategy.note``). In rounds.jsonl, under ``agg/``, the means of
``update_norms`` over the clients that answered, and

    update_norm_max     the longest update
    mean_norm           of the clients' weighted mean, as the strategy gets it
    step_norm           of the change of the server's weights
    cosine              |sum p_i d_i| / sum p_i |d_i|: the cosine between a client's update d_i and
                        the mean, averaged with weights p_i |d_i|; 1 where all updates point the
                        same way, 1 / sqrt(n) for n equal clients at right angles
    down_residual_norm  with error feedback on the way down: what the clients' copy of the weights
                        lacks, relative to the weights
    plan_min, plan_mean, plan_max    with L-GreCo: the option's values over arrays

The cosine needs no update beside another, so it holds for blocks, too. With the diversity D of n
updates of equal weight (D. Yin et al., "Gradient Diversity", AISTATS 2018,
https://arxiv.org/abs/1706.05699), 1 / (n D) <= cosine^2, equal where all are of one length. It is
left out where the mean is not one of the cohort's updates (EF21's mean over all clients,
MIFA, asynchronous servers), where a stock strategy keeps it to itself, and for packed vectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy

from fedsim.arrays import distance, norm
from fedsim.engine.blocks import Report
from fedsim.engine.update_norms import DECODED, LOST, RESIDUAL, UPDATE
from fedsim.event_strategy import EventStrategy
from fedsim.records import Record
from fedsim.strategy import DeltaStrategy, to_arrays

if TYPE_CHECKING:
    from fedsim.engine.grid import WorkerGrid


def of_round(
    grid: WorkerGrid,
    strategy: Strategy,
    reports: Sequence[Report],
    before: ArrayRecord,
    after: ArrayRecord | None,
) -> Record:
    """What is known of a round, under run-folder keys."""
    good = [r for r in reports if r.status == "ok"]
    found: Record = {}
    for name in (UPDATE, DECODED, LOST, RESIDUAL):
        if values := [r.internals[name] for r in good if name in r.internals]:
            found[name] = math.fsum(values) / len(values)
    if UPDATE in found:
        found[f"{UPDATE}_max"] = max(r.internals[UPDATE] for r in good)
    sent = to_arrays(before, copy=False)
    if after is not None:
        found["step_norm"] = distance(to_arrays(after, copy=False), sent)
    if isinstance(strategy, DeltaStrategy):
        found |= strategy.take_notes()
    if "mean_norm" in found and (cosine := _cosine(strategy, good, grid, found["mean_norm"])):
        found["cosine"] = cosine
    lacking = grid.downlink.residual(sent)
    if lacking is not None:
        found["down_residual_norm"] = lacking / (norm(sent) or 1.0)
    return {f"agg/{name}": value for name, value in (found | _plan(grid)).items()}


def _cosine(
    strategy: Strategy, good: Sequence[Report], grid: WorkerGrid, mean_norm: float
) -> float | None:
    """The weighted mean cosine of ``good`` clients' updates to their mean; None where unknown."""
    codec = grid.codecs.up
    assert isinstance(strategy, DeltaStrategy)
    corrected = type(strategy).correct is not DeltaStrategy.correct
    if corrected or isinstance(strategy, EventStrategy) or codec.accumulates:
        return None
    name = UPDATE if codec.lossless else DECODED
    if any(name not in r.internals for r in good):
        return None
    weights = [strategy.cohort.get(r.client, r.num_examples) for r in good]
    lengths = math.fsum(w * r.internals[name] for w, r in zip(weights, good, strict=True))
    return mean_norm * math.fsum(weights) / lengths if lengths else None


def _plan(grid: WorkerGrid) -> Record:
    if grid.planner is None or not grid.planner.plan:
        return {}
    values = grid.planner.chosen
    mean = math.fsum(values) / len(values)
    return {"plan_min": min(values), "plan_mean": mean, "plan_max": max(values)}
