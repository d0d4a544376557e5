"""Ferret: projections, reconstruction, allocation, bytes, limit cases, bad input, equal bits."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedsim import projection, registry, simulation, wire
from fedsim.arrays import Arrays
from fedsim.directions import Directions, truncated_variance
from fedsim.engine.inline import InlineGrid
from fedsim.errors import ClientError, PluginError, RunError
from fedsim.projection import Basis, Step, allocate, choose, coefficients, cut
from fedsim.strategies.ferret import Ferret as FerretStrategy
from tests.engine.runs import comparable, recipe, stopped
from tests.problems import tiny
from tests.test_clients import train as trained
from tests.test_clients import worker
from tests.test_fedkseed import final_weights, reply

CLIENT = {"name": "ferret", "learning_rate": 0.1, "batch_size": 8}
STRATEGY = {"name": "ferret", "num_bases": 64}
FERRET = {"client": CLIENT, "strategy": STRATEGY}


def block(size: int, seed: int = 0) -> Arrays:
    return {"x": np.random.default_rng(seed).normal(size=size).astype(np.float32)}


def rebuilt(delta: Arrays, basis: Basis, count: int, number: int = 0) -> np.ndarray:
    """One block's update after it was projected on ``count`` vectors and put together again."""
    chosen = choose(7, number, count, basis.size)
    gamma = basis.project(delta, number, chosen.tolist())
    c = np.zeros(basis.size)
    c[chosen] = gamma * basis.factor(delta["x"].size, count)
    result = {"x": np.zeros_like(delta["x"])}
    basis.add(result, number, c)
    return result["x"]


# -- projection and reconstruction -------------------------------------------------------------


def test_the_expected_reconstruction_is_the_update():
    delta = block(256)
    whole = rebuilt(delta, Basis(3, 20_000), 20_000)
    along = whole @ delta["x"] / (delta["x"] @ delta["x"])
    assert along == pytest.approx(1, abs=0.02)
    noise = np.linalg.norm(whole - delta["x"]) / np.linalg.norm(delta["x"])
    assert noise == pytest.approx(np.sqrt(256 / 20_000), rel=0.2)
    third = rebuilt(delta, Basis(3, 20_000, "code"), 20_000)
    assert third @ delta["x"] / (delta["x"] @ delta["x"]) == pytest.approx(1 / 3, abs=0.01)


@pytest.mark.parametrize(("count", "expected"), [(50, 6.3), (500, 2.0), (5000, 0.63)])
def test_noise_of_the_reconstruction_follows_the_formula(count, expected):
    """sqrt(d / K); the specification measured 5.0, 1.98 and 0.62 at d = 2000."""
    delta = block(2000, seed=1)
    error = np.linalg.norm(rebuilt(delta, Basis(11, count), count) - delta["x"])
    assert error / np.linalg.norm(delta["x"]) == pytest.approx(expected, rel=0.25)


def test_with_the_canonical_basis_nothing_is_lost(monkeypatch):
    delta = block(12)
    eye = np.eye(12, dtype=np.float32)

    def dot(self, x, seeds):
        return np.array([eye[s % 100] @ x["x"] for s in seeds], np.float64)

    def accumulate(self, x, seeds, scales):
        for s, c in zip(seeds, scales, strict=True):
            x["x"] += np.float32(c) * eye[s % 100]

    monkeypatch.setattr(Directions, "dot", dot)
    monkeypatch.setattr(Directions, "accumulate", accumulate)
    monkeypatch.setattr(Basis, "factor", lambda self, size, count: 1.0)
    np.testing.assert_array_equal(rebuilt(delta, Basis(0, 12), 12), delta["x"])


def test_vectors_are_no_longer_than_one_and_differ_between_blocks():
    x = {"x": np.zeros(300, np.float32)}
    one, two = ({"x": x["x"].copy()} for _ in range(2))
    Basis(5, 4).add(one, 0, np.array([1.0, 0, 0, 0]))
    Basis(5, 4).add(two, 1, np.array([1.0, 0, 0, 0]))
    assert np.linalg.norm(one["x"]) == pytest.approx(1 / np.sqrt(3), rel=0.1)
    assert not np.array_equal(one["x"], two["x"])


def test_blocks_are_cut_as_published():
    sizes = {"big": 1000, "a": 4, "b": 5, "other": 1000, "c": 900, "d": 3}
    arrays = {name: np.zeros(n) for name, n in sizes.items()}
    assert cut(arrays) == [["big"], ["a", "b"], ["other"], ["c"], ["d"]]
    assert cut({"only": np.zeros(3)}) == [["only"]]


def test_allocation_of_the_specification():
    assert allocate([4, 2, 0.01], 100) == [100, 50, 2]
    assert allocate([0, 0], 100) == [2, 2]
    assert allocate([1, 0], 1) == [1, 1]


def test_chosen_vectors_are_distinct_and_repeat():
    chosen = choose(99, 3, 50, 64)
    assert len(set(chosen.tolist())) == 50
    assert chosen.max() < 64
    np.testing.assert_array_equal(chosen, choose(99, 3, 50, 64))
    assert not np.array_equal(chosen, choose(99, 4, 50, 64))


# -- limit cases -------------------------------------------------------------------------------


@pytest.mark.slow
def test_many_vectors_come_close_to_fedavg(tmp_path):
    plan = {"num_rounds": 4}
    average = simulation.run(tiny(client={**CLIENT, "name": "sgd"}, **plan), out=tmp_path)
    errors = []
    for count in (200, 6000):
        strategy = {**STRATEGY, "num_bases": count}
        run = simulation.run(tiny(client=CLIENT, strategy=strategy, **plan), out=tmp_path)
        mine, theirs = final_weights(run), final_weights(average)
        errors.append(max(np.abs(mine[n] - theirs[n]).max() for n in mine))
    assert errors[1] < errors[0]
    assert errors[1] < 0.2


def test_a_server_rate_of_zero_keeps_the_model(tmp_path):
    run = simulation.run(
        tiny(client=CLIENT, strategy={**STRATEGY, "server_learning_rate": 0.0}), out=tmp_path
    )
    assert run.rounds[-1]["eval/loss"] == run.rounds[0]["eval/loss"]


def test_one_vector_is_a_directional_derivative(tmp_path):
    """T = 1, one client, K = 1: each block moves by -slr <Delta, v> v / rho."""
    local = {"local_steps": 1, "batch_size": 1000}
    strategy = {**STRATEGY, "num_bases": 1, "bases": "run", "server_learning_rate": 0.7}
    plan = {"num_clients": 1, "num_rounds": 1}
    run = simulation.run(tiny(client={**CLIENT, **local}, strategy=strategy, **plan), out=tmp_path)
    plain = simulation.run(tiny(client={**CLIENT, **local, "name": "sgd"}, **plan), out=tmp_path)
    with InlineGrid(recipe(tiny())) as grid:
        start = grid.facts["arrays"]
    seed = simulation.Seeds(3).integer("basis")
    final, whole = final_weights(run), final_weights(plain)
    for number, name in enumerate(start):
        v = Directions(start[name].size, "truncated", stream=number + 1).values(seed)
        moved, delta = ((x[name] - start[name]).ravel() for x in (final, whole))
        expected = 0.7 * (delta @ v) * v / truncated_variance(v.size)
        np.testing.assert_allclose(moved, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow_variants
@pytest.mark.parametrize("bases", ["run", "round", "client"])
def test_it_learns_and_resumes(tmp_path, bases):
    strategy = {**STRATEGY, "bases": bases}
    scenario = tiny(client=CLIENT, strategy=strategy, num_rounds=8, checkpoint={"every": 1})
    whole = simulation.run(scenario, out=tmp_path / "whole")
    assert whole.rounds[-1]["eval/loss"] < 0.5 * whole.rounds[0]["eval/loss"]
    resumed = simulation.resume(stopped(scenario, tmp_path, 4))
    assert resumed.summary["weights_sha256"] == whole.summary["weights_sha256"]
    assert comparable(resumed) == comparable(whole)


@pytest.mark.slow
@pytest.mark.parametrize("bases", ["round", "client"])
def test_one_process_and_two_workers_give_the_same_bits(tmp_path, bases):
    plan = {"client": CLIENT, "strategy": {**STRATEGY, "bases": bases}, "num_rounds": 3}
    engines = ({"backend": "inline"}, {"backend": "ray", "workers": 2})
    runs = [simulation.run(tiny(**plan, engine=engine), out=tmp_path) for engine in engines]
    assert len({run.summary["weights_sha256"] for run in runs}) == 1
    assert comparable(runs[0]) == comparable(runs[1])


def test_rates_fall_as_asked():
    build = registry.build
    for anneal, middle in (("none", 10.0), ("linear", 6.0), ("cosine", 6.0)):
        options = {"server_learning_rate": 10, "final_server_learning_rate": 2, "anneal": anneal}
        strategy = build("strategies", {**STRATEGY, **options, "anneal_rounds": 10})
        strategy._round = 1
        assert strategy.rate() == pytest.approx(10.0)
        strategy._round = 6
        assert strategy.rate() == pytest.approx(middle)


def of_one_block(**options) -> FerretStrategy:
    strategy = registry.build("strategies", {**STRATEGY, "num_bases": 2, **options})
    strategy.initial = lambda: {"x": np.zeros(300, np.float32)}
    strategy._weights = strategy.initial()
    return strategy


def steps_of(strategy: FerretStrategy) -> list[list[float]]:
    """Coefficients of the last round, a row for each basis."""
    return strategy.state["history"][-1][1][:, 0].tolist()


def test_momentum_keeps_a_share_of_the_coefficients():
    strategy = of_one_block(bases="run", server_momentum=0.5)
    for _ in range(2):
        table = {"coefficients": np.array([[0.25, -0.5]])}
        strategy.server_update(strategy._weights, table, strategy.state)
    assert steps_of(strategy) == [[0.25 * 1.5, -0.5 * 1.5]]


def test_clients_with_bases_of_their_own_count_by_their_rows():
    strategy = of_one_block(bases="client")
    strategy.broadcasts(1, [0])
    update = {"coefficients": np.array([[0.25, -0.5]])}
    strategy.aggregate_train(1, [reply(update, 3), reply(update, 1)])
    shares = [[0.25 * 0.75, -0.5 * 0.75], [0.25 * 0.25, -0.5 * 0.25]]
    assert steps_of(strategy) == shares


def test_equal_weight_counts_every_client_alike():
    for equal, weight in ((False, 20), (True, 1)):
        (report,) = trained(worker(client={**CLIENT, "equal_weight": equal}), 0).reports
        assert report.num_examples == weight


def test_long_steps_are_clipped():
    strategy = registry.build("strategies", {**STRATEGY, "max_step_norm": 0.5})
    strategy.initial = lambda: {"x": np.zeros(3000, np.float32)}
    strategy._weights = strategy.initial()
    table = strategy._clipped(np.array([[[5.0, -5.0, 0.1]]]))
    assert table[0, 0, 0] * np.sqrt(1 / 3) == pytest.approx(0.5, rel=1e-3)
    assert table[0, 0].tolist()[1:] == [-table[0, 0, 0], pytest.approx(0.1)]


# -- bytes -------------------------------------------------------------------------------------


def test_bytes_follow_the_formula_of_blocks_and_vectors(tmp_path):
    model = {"name": "tests.problems:perceptron", "options": {"hidden": 3000}}
    plan = {"model": model, "num_rounds": 2, "clients_per_round": 2}
    average = simulation.run(tiny(client={**CLIENT, "name": "sgd"}, **plan), out=tmp_path)
    full = next(average.clients)["up_bytes"]
    assert full == 20 + 4 * (4 * 3000 + 3000 + 3000 * 3 + 3)
    for indices, bits in (("derived", 0), ("sent", 6)):
        client = {**CLIENT, "indices": indices}
        run = simulation.run(tiny(client=client, strategy=STRATEGY, **plan), out=tmp_path)
        rows = list(run.clients)
        row = rows[0]
        assert row["up_bytes"] <= 20 + 80 + 4 * 64 * (4 + bits / 8)
        assert row["up_bytes"] >= (64 + 2) * 4
        assert full / row["up_bytes"] > 80
        later = [r["down_bytes"] for r in rows if r["round"] == 2]
        assert max(later) <= 20 + 120 + 4 * 64 * 5


def test_half_precision_takes_half(tmp_path):
    sizes = []
    for kind in ("float32", "float16"):
        client = {**CLIENT, "coordinates": kind}
        run = simulation.run(tiny(client=client, strategy=STRATEGY, num_rounds=1), out=tmp_path)
        sizes.append(next(run.clients)["up_bytes"])
    assert sizes[1] < 0.7 * sizes[0]


def test_half_precision_keeps_small_updates_of_large_blocks():
    """Coordinates of an update of length 1e-3 are near 1e-3 sqrt(rho): 3e-7 in a large block."""
    delta, basis = {"x": block(3_000_000)["x"]}, Basis(0, 8)
    delta["x"] *= np.float32(1e-3 / np.linalg.norm(delta["x"]))
    received = {**basis.message(), "sizes": np.array([3_000_000], np.uint64)}
    found = {}
    for kind in ("float32", "float16"):
        client = SimpleNamespace(
            received=received,
            generator=torch.Generator().manual_seed(0),
            count=lambda flops: None,
            task=SimpleNamespace(placed=lambda arrays: arrays),
        )
        sent = registry.build("clients", {**CLIENT, "coordinates": kind})._project(
            client, basis, delta
        )
        assert sent["coordinates"].dtype == kind
        found[kind] = coefficients(sent, basis, [3_000_000])
    np.testing.assert_allclose(found["float16"], found["float32"], rtol=2e-3)


def test_what_was_missed_can_be_replayed_and_weights_travel_when_shorter():
    rng = np.random.default_rng(0)
    start = {"a": rng.normal(size=(50, 40)).astype(np.float32), "b": np.ones(9, np.float32)}
    steps = [Step((n,), rng.normal(size=(1, 2, 8)).astype(np.float32)) for n in range(3)]
    weights = {name: x.copy() for name, x in start.items()}
    for step in steps:
        step.apply(weights, cut(start))
    payload = wire.pack(projection.pack_steps(steps))
    missed = projection.unpack_steps(wire.unpack(payload), 2, 8)
    mine = {name: x.copy() for name, x in start.items()}
    missed.apply(mine, cut(start))
    for name in start:
        np.testing.assert_allclose(mine[name], weights[name], atol=1e-5)
    strategy = registry.build("strategies", STRATEGY)
    strategy.initial, strategy._weights = lambda: start, start
    for step in steps:
        strategy._remember(step, strategy.state)
    assert "coefficients" in strategy.broadcasts(4, [0])[0]
    strategy.state["history"] = []
    assert strategy._news(3)["weights"].size == 2009


# -- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"counts": np.uint8([2, 2, 2])}, "2 blocks"),
        ({"coordinates": np.float32([1, 2, 3])}, "2 blocks"),
        ({"coordinates": np.float32([1, 2, 3, np.inf])}, "NaN or infinity"),
        ({"coordinates": np.float64([1, 2, 3, 1e300])}, "more than float32 holds"),
        ({"counts": np.float32([np.inf, 2])}, "counts are no list of unsigned integers"),
        ({"counts": np.uint64([2**64 - 1, 5])}, "2 blocks"),
        ({"indices": np.int64([0, 1, 0, -1])}, "indices are no list of unsigned integers"),
        ({"indices": np.uint64([0, 1, 0, 2**64 - 1])}, "a basis of 64"),
        ({"origin": np.float64([np.nan])}, "origin are no list of unsigned integers"),
        ({"indices": np.uint8([0, 1, 0, 64])}, "a basis of 64"),
        ({"indices": np.uint8([0, 0, 0, 1])}, "a basis of 64"),
    ],
)
def test_updates_of_another_basis_are_refused(change, fault):
    good = {
        "counts": np.uint8([2, 2]),
        "coordinates": np.float32([1, 2, 3, 4]),
        "indices": np.uint8([0, 1, 0, 63]),
    }
    assert np.count_nonzero(coefficients(good, Basis(0, 64), [12, 3])) == 4
    with pytest.raises(ClientError, match=fault):
        coefficients({**good, **change}, Basis(0, 64), [12, 3])


def test_a_run_with_other_directions_is_not_resumed(tmp_path, monkeypatch):
    scenario = tiny(**FERRET, num_rounds=3, checkpoint={"every": 1})
    folder = stopped(scenario, tmp_path, 2)
    for module in ("strategies.ferret", "projection", "seedpool"):
        monkeypatch.setattr(f"fedsim.{module}.VERSION", 2, raising=False)
    with pytest.raises(RunError, match="of version 1; this fedsim makes version 2"):
        simulation.resume(folder)
    monkeypatch.undo()
    assert simulation.resume(folder).status == "done"


def test_messages_of_others_and_senseless_options_are_refused():
    with pytest.raises(RunError, match="no basis"):
        Basis.of({"weights": np.zeros(3)})
    old = {"basis": np.array([1, 64, 0, 0], np.uint64)}
    with pytest.raises(RunError, match="version 0"):
        Basis.of(old)
    with pytest.raises(PluginError, match="anneal_rounds"):
        registry.build("strategies", {**STRATEGY, "anneal": "linear"})
    with pytest.raises(PluginError, match="bases: run"):
        registry.build("strategies", {**STRATEGY, "server_momentum": 0.9})
    message = Basis(0, 64).message()
    with pytest.raises(RunError, match="the model it had before"):
        registry.build("clients", CLIENT).receive(SimpleNamespace(), message, {}, None)
