"""Weights for clients that come and go: the published sequences, limits, and limit cases."""

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict

from fedsim import registry, simulation
from fedsim.arrays import Arrays
from fedsim.engine.messages import bind_task
from fedsim.errors import PluginError
from fedsim.strategies.fedau import Gaps
from fedsim.strategy import DeltaStrategy, to_arrays, to_record
from tests.problems import tiny

SERIES = (0, 0, 1, 0, 1, 1)


class Present:
    """A grid on which only some clients are there."""

    def __init__(self, clients: list[int]) -> None:
        self.clients = clients

    def get_node_ids(self) -> list[int]:
        return self.clients


def build(name: str, num_clients: int, **options) -> DeltaStrategy:
    strategy = registry.build("strategies", {"name": name, **options})
    strategy.num_clients = num_clients
    return strategy


def one_round(strategy, server_round: int, w: Arrays, deltas: dict[int, float], failed=()):
    """One round with the given clients, of whom some fail."""
    bind_task()
    if not deltas:
        return w
    grid = Present(list(deltas))
    replies = []
    for message in strategy.configure_train(server_round, to_record(w), ConfigRecord(), grid):
        client = message.metadata.dst_node_id
        if client in failed:
            replies.append(Message(Error(code=2, reason="gone"), reply_to=message))
            continue
        arrays = to_record({"x": np.float64([deltas[client]])})
        content = RecordDict({"delta": arrays, "metrics": MetricRecord({"num-examples": 5})})
        replies.append(Message(content, reply_to=message))
    arrays, _ = strategy.aggregate_train(server_round, replies)
    return w if arrays is None else to_arrays(arrays)


@pytest.mark.parametrize(
    ("cutoff", "expected"),
    [
        (None, [1, 1, 1, 3, 3, 2.5, 2]),
        (2, [1, 1, 2, 1.5, 1.5, 5 / 3, 1.5]),
        (1, [1] * 7),
    ],
)
def test_weights_of_the_published_recursion(cutoff, expected):
    strategy = build("fedau", 2, cutoff=cutoff)
    w = {"x": np.zeros(1)}
    got = []
    for t, present in enumerate((*SERIES, 0)):
        got.append(strategy.client_weights(t + 1, [0])[0])
        w = one_round(strategy, t + 1, w, {0: 1.0} if present else {1: 0.0})
    assert got == pytest.approx(expected)


@pytest.mark.parametrize("cutoff", [1, 2, 3, 7, 50, 10**6])
def test_catching_up_equals_stepping_through_every_round(cutoff):
    rng = np.random.default_rng(0)
    count, gap, omega, before, lazy = 0, 0, 1.0, 0, Gaps()
    for t in range(400):
        if t:
            gap += 1
            if before or gap == cutoff:
                omega = (count * omega + gap) / (count + 1)
                count, gap = count + 1, 0
        assert lazy.until(t, cutoff).mean == pytest.approx(omega, rel=1e-12)
        before = rng.random() < 0.15
        if before:
            lazy = lazy.until(t, cutoff).closed(t)


@pytest.mark.parametrize(("p", "limit"), [(0.1, 9.948462), (0.02, 31.791516)])
def test_mean_of_the_cut_gaps(p, limit):
    assert (1 - (1 - p) ** 50) / p == pytest.approx(limit)
    rng = np.random.default_rng(1)
    rounds = np.flatnonzero(rng.random(1_000_000) < p)
    gaps = Gaps()
    for t in rounds:
        gaps = gaps.until(int(t), 50).closed(int(t))
    assert gaps.mean == pytest.approx(limit, rel=0.01)


def long_run_mean(name: str, rounds: int = 4000, **options) -> float:
    """Two clients, f_n = (x - b_n)^2 / 2, b = (0, 1), present with p = (0.9, 0.1)."""
    strategy = build(name, 2, **options)
    rng = np.random.default_rng(2)
    x, total = {"x": np.full(1, 0.3)}, 0.0
    for t in range(1, rounds + 1):
        here = [n for n, p in enumerate((0.9, 0.1)) if rng.random() < p]
        x = one_round(strategy, t, x, {n: 0.01 * (n - x["x"][0]) for n in here})
        total += x["x"][0] * (t > rounds // 4)
    return total / (rounds * 3 // 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "expected", "within"),
    [
        ("fedavg", {}, 0.0604396, 0.01),
        ("fedau", {"cutoff": 1}, 0.1, 0.02),
        ("known_participation", {"rates": [0.9, 0.1]}, 0.5, 0.04),
        ("fedau", {"cutoff": None}, 0.5, 0.04),
        ("mifa", {}, 0.5, 0.001),
        ("fedvarp", {}, 0.5, 0.001),
    ],
)
def test_where_two_unequal_clients_settle(name, options, expected, within):
    assert long_run_mean(name, **options) == pytest.approx(expected, abs=within)


@pytest.mark.parametrize("cutoff", [None, 50, 1])
def test_full_participation_is_fedavg(cutoff):
    ours, theirs = build("fedau", 3, cutoff=cutoff), build("fedavg", 3)
    w = v = {"x": np.zeros(1)}
    for t in range(1, 5):
        deltas = {n: float(n + t) for n in range(3)}
        w, v = one_round(ours, t, w, deltas), one_round(theirs, t, v, deltas)
    assert w["x"] == pytest.approx(v["x"])


def test_a_cutoff_of_one_averages_over_all():
    strategy = build("fedau", 10, cutoff=1)
    assert one_round(strategy, 1, {"x": np.zeros(1)}, {3: 2.0, 4: 6.0})["x"] == pytest.approx(0.8)
    assert one_round(strategy, 9, {"x": np.zeros(1)}, {3: 2.0})["x"] == pytest.approx(0.2)


def test_a_failed_client_was_absent():
    strategy = build("fedau", 2, cutoff=None)
    w = one_round(strategy, 1, {"x": np.zeros(1)}, {0: 4.0, 1: 4.0}, failed=[1])
    assert w["x"] == pytest.approx(2.0)
    assert strategy.client_weights(3, [0, 1]) == {0: 1.0, 1: 1.0}
    one_round(strategy, 3, w, {0: 1.0, 1: 1.0})
    assert strategy.client_weights(4, [0, 1]) == {0: 1.5, 1: 3.0}


def test_memory_only_for_clients_that_were_seen():
    strategy = build("fedau", 10**9)
    one_round(strategy, 1000, {"x": np.zeros(1)}, {10**8: 1.0, 5: 1.0})
    assert len(strategy.state["gaps"]) == 2
    assert strategy.client_weights(1000, [7]) == {7: 50.0}


@pytest.mark.parametrize("name", ["mifa", "fedvarp"])
def test_memory_methods_with_everyone_are_fedavg(name):
    ours, theirs = build(name, 3), build("fedavg", 3)
    w = v = {"x": np.zeros(1)}
    for t in range(1, 5):
        deltas = {n: float(n * t) for n in range(3)}
        w, v = one_round(ours, t, w, deltas), one_round(theirs, t, v, deltas)
        assert w["x"] == pytest.approx(v["x"])


def test_the_latest_updates_of_absent_clients_count():
    mifa, fedvarp = build("mifa", 2), build("fedvarp", 2)
    w = one_round(mifa, 1, {"x": np.zeros(1)}, {0: 4.0})
    assert w["x"] == pytest.approx(2.0)
    assert one_round(mifa, 2, w, {1: 2.0})["x"] == pytest.approx(2.0 + (4.0 + 2.0) / 2)
    w = one_round(fedvarp, 1, {"x": np.zeros(1)}, {0: 4.0})
    assert w["x"] == pytest.approx(4.0)
    assert one_round(fedvarp, 2, w, {1: 2.0})["x"] == pytest.approx(4.0 + 2.0 + 4.0 / 2)


def test_rates_must_be_known_from_somewhere():
    strategy = build("known_participation", 2)
    with pytest.raises(PluginError, match="how often clients take part"):
        strategy.client_weights(1, [0])
    strategy.participation_rate = lambda client: 0.25
    assert strategy.client_weights(1, [0]) == {0: 4.0}


@pytest.mark.slow_variants
@pytest.mark.parametrize("name", ["fedau", "mifa", "fedvarp"])
def test_all_clients_of_equal_size_train_as_in_fedavg(name, tmp_path):
    runs = [simulation.run(tiny(strategy={"name": n}), out=tmp_path) for n in (name, "fedavg")]
    losses = [run.summary["key_metric"]["final"] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.slow
def test_weights_inside_blocks_are_the_same_bits_for_any_number_of_workers(tmp_path):
    engines = [{"backend": "inline"}, *({"backend": "ray", "workers": n} for n in (1, 2))]
    changes = {"strategy": {"name": "fedau"}, "num_clients": 40, "clients_per_round": 30}
    runs = [simulation.run(tiny(**changes, engine=e, num_rounds=4), out=tmp_path) for e in engines]
    assert len({run.summary["weights_sha256"] for run in runs}) == 1
