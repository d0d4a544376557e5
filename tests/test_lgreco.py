"""L-GreCo: the toy of its specification, exhaustive search, and plans that travel in runs."""

import itertools

import numpy as np
import pytest

from fedsim import simulation
from fedsim.arrays import Arrays
from fedsim.chain import build_chain
from fedsim.codec import HEADER, Sender
from fedsim.errors import PluginError
from fedsim.lgreco import Planner, solve, tables
from tests.engine.runs import comparable, stopped
from tests.problems import tiny

ERRORS = np.array([[4, 2, 1], [3, 2, 0.5], [6, 3, 0]])
SIZES = np.array([[1.0, 2, 4], [10, 20, 40], [2, 4, 8]])


def test_the_toy_with_norms_and_with_squares():
    assert solve(SIZES, ERRORS, 7.0) == [2, 0, 1]
    assert solve(SIZES, ERRORS**2, 17.0) == [1, 0, 2]


def exhaustive(sizes, errors, budget: float) -> float:
    layers = range(len(sizes))
    plans = itertools.product(range(sizes.shape[1]), repeat=len(sizes))
    return min(
        (
            sum(sizes[i, p[i]] for i in layers)
            for p in plans
            if sum(errors[i, p[i]] for i in layers) <= budget
        ),
        default=np.inf,
    )


def test_exhaustive_search_finds_nothing_better_but_at_the_edge_of_the_budget():
    rng = np.random.default_rng(0)
    for _ in range(150):
        layers, choices = int(rng.integers(1, 6)), int(rng.integers(1, 5))
        errors = np.sort(rng.random((layers, choices)))[:, ::-1]
        sizes = np.sort(rng.integers(1, 50, (layers, choices)).astype(float))
        budget = float(errors[:, choices // 2].sum() * rng.uniform(0.8, 1.5))
        plan = solve(sizes, errors, budget)
        best = exhaustive(sizes, errors, budget)
        if not plan:
            assert exhaustive(sizes, errors, budget * (1 - layers / 10_000)) == np.inf
            continue
        rows = np.arange(layers)
        assert errors[rows, plan].sum() <= budget * (1 + 1e-9)
        assert best <= sizes[rows, plan].sum()
        assert sizes[rows, plan].sum() <= exhaustive(sizes, errors, budget * (1 - layers / 10_000))


def test_limits():
    one = np.array([[5.0]])
    assert solve(one, one, 5.0) == [0]
    assert solve(SIZES, ERRORS, 1e9) == [0, 0, 0]
    assert solve(SIZES, ERRORS, 0.0) == []
    exact_at_the_end = ERRORS * [1, 1, 0]
    assert solve(SIZES, exact_at_the_end, 0.0) == [2, 2, 2]


def update() -> Arrays:
    """A wide layer of rank one, a small one of full rank, a bias."""
    rng = np.random.default_rng(0)
    wide = np.outer(rng.normal(size=40), rng.normal(size=60)) + 1e-3 * rng.normal(size=(40, 60))
    arrays = {"wide": wide, "small": rng.normal(size=(24, 24)) / 20, "bias": rng.normal(size=24)}
    return {k: v.astype(np.float32) for k, v in arrays.items()}


CODECS = {
    "topk": [{"name": "topk", "density": 0.1}],
    "qsgd": [{"name": "qsgd", "bits": 4, "bucket": 128}],
    "powersgd": [{"name": "powersgd", "rank": 4}],
    "topk+sign, ef21": [
        {"name": "topk", "density": 0.1},
        {"name": "sign", "error_feedback": "ef21"},
    ],
}


def planner(name: str, **options) -> Planner:
    defaults = {"every": 2, "slack": 1.0, "squared": False, "buckets": 10_000}
    return Planner(build_chain(CODECS[name]), **{**defaults, **options})


@pytest.mark.parametrize("name", CODECS)
def test_plans_cost_no_more_bytes_and_no_more_error_than_the_reference(name):
    plan = planner(name)
    zero = {k: np.zeros_like(v) for k, v in update().items()}
    reference = plan.observe(zero)
    assert plan.observe(zero) == reference
    chosen = plan.observe(update())
    assert chosen != reference
    sizes, errors = tables(plan.codec, update())
    rows = np.arange(3)
    assert sizes[rows, list(chosen)].sum() < sizes[rows, list(reference)].sum()
    assert errors[rows, list(chosen)].sum() <= errors[rows, list(reference)].sum() * (1 + 1e-6)


def test_powersgd_gives_ranks_where_spectra_decay_slowly():
    plan = planner("powersgd", every=1)
    plan.observe({k: np.zeros_like(v) for k, v in update().items()})
    ranks = [plan.codec.candidates()[i] for i in plan.observe(update())]
    assert ranks[0] < 4 <= ranks[1]


def test_a_codec_without_a_parameter_cannot_be_planned():
    with pytest.raises(PluginError, match=r"nothing to plan.*topk, qsgd, powersgd"):
        Planner(build_chain([{"name": "sign"}]), every=1, slack=1, squared=False, buckets=100)


def test_plans_travel_and_are_counted_and_survive_a_resume(tmp_path):
    codec = {"up": [{"name": "topk", "density": 0.2, "error_feedback": "ef14"}]}
    codec["lgreco"] = {"every": 2, "slack": 2.0}
    scenario = tiny(codec=codec, num_rounds=6, clients_per_round=3, checkpoint={"every": 1})
    whole = simulation.run(scenario, out=tmp_path / "whole")
    assert [r["comm/down_plan_bytes"] for r in whole.rounds[1:]] == [3 * 2] * 6
    assert whole.rounds[1]["comm/down_bytes"] == 3 * (HEADER.size + 4 * 15 + 2)
    resumed = simulation.resume(stopped(scenario, tmp_path, 3))
    assert comparable(resumed) == comparable(whole)
    assert len({r["comm/up_values_bytes"] for r in whole.rounds[1:]}) > 1


def test_planned_payloads_decode_without_the_plan():
    codec = build_chain([{"name": "topk", "density": 0.1}])
    x = update()
    sender = Sender(plan={"wide": 0.5, "small": 0.01, "bias": 1.0})
    y = codec.decode(codec.encode(x, {}, sender), x)
    assert [int((v != 0).sum()) for v in y.values()] == [1200, 6, 24]
