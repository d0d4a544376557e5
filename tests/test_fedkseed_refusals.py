"""FedKSeed refuses foreign seeds, scalars, models and versions, and loses nothing by it."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from fedsim import partners, simulation
from fedsim.client import Client, Update
from fedsim.clients._zeroth import slope
from fedsim.clients.kseed import KSeed
from fedsim.errors import ClientError, PluginError, RunError
from fedsim.seedpool import SeedPool, fingerprint
from tests.engine.runs import stopped
from tests.problems import tiny
from tests.test_fedkseed import CLIENT, KSEED, START, STRATEGY, build, pairs, pool, reply


@pytest.mark.parametrize(
    ("update", "fault"),
    [
        (pairs([3, 64], [1, 1]), "seed 64 is outside the pool of 64"),
        (pairs([3], [np.nan]), "NaN"),
        (pairs([3, 4], [1]), "do not fit a pool of 64"),
        ({"accumulators": np.ones(63, np.float32)}, "do not fit a pool of 64"),
        ({"accumulators": np.full(64, 1e300)}, "more than float32 holds"),
        ({"seeds": np.uint16([1])}, "do not fit"),
        ({"seeds": np.int64([-1]), "scalars": np.float32([1])}, "no list of unsigned integers"),
        ({"seeds": np.float32([3.7]), "scalars": np.float32([1])}, "no list of unsigned integers"),
        ({"seeds": np.uint8([[1]]), "scalars": np.float32([1])}, "no list of unsigned integers"),
        (pairs([3, 3], [3e38, 3e38]), "more than float32 holds"),
    ],
)
@pytest.mark.parametrize("pro", [False, True])
def test_updates_of_another_pool_are_refused(update, fault, pro):
    with pytest.raises(ClientError, match=fault):
        pool().dense(update)
    strategy = build(pro=pro)
    with pytest.raises(ClientError, match=fault):
        strategy.aggregate_train(1, [reply(update)])
    assert not strategy.state


def test_accumulators_that_outgrow_float32_stop_the_run_and_keep_their_last_values():
    strategy = build()
    strategy.aggregate_train(1, [reply(pairs([3], [3e38]))])
    before = strategy.state["accumulators"].copy()
    with pytest.raises(RunError, match="outgrow float32"):
        strategy.aggregate_train(2, [reply(pairs([3], [3e38]))])
    np.testing.assert_array_equal(strategy.state["accumulators"], before)
    assert strategy.state["updates"] == 1


class Outside(KSeed):
    """Names a seed that the pool does not have."""

    def train(self, client: Client) -> Update:
        update = super().train(client)
        spoilt = {**update.arrays, "seeds": update.arrays["seeds"] + np.uint8(64)}
        return Update(spoilt, update.num_examples, update.metrics) if client.id == 2 else update


def test_a_client_that_names_foreign_seeds_fails_alone(tmp_path):
    client = {**CLIENT, "name": "tests.test_fedkseed_refusals:Outside"}
    run = simulation.run(tiny(client=client, strategy=STRATEGY, num_rounds=1), out=tmp_path)
    assert run.rounds[-1]["clients/failed"] == 1
    (bad,) = [row for row in run.clients if row["status"] == "failed"]
    assert "outside the pool of 64" in bad["error"]


def test_steps_without_a_finite_loss_or_with_a_large_jump_are_dropped():
    assert slope((np.nan, 1.0), 1e-3, None) is None
    assert slope((3.0, 1.0), 1e-3, 1.0) is None
    assert slope((3.0, 1.0), 0.5, 2.0) == 2.0


def test_an_empty_pool_is_refused():
    with pytest.raises(PluginError, match="num_seeds"):
        build(num_seeds=0)
    with pytest.raises(RunError, match="0 seeds"):
        SeedPool.of(pool(0).message(np.zeros(0, np.float32)))


def test_other_initial_weights_versions_and_clients_are_refused(tmp_path, monkeypatch):
    received = pool().message(np.zeros(64, np.float32))
    task = SimpleNamespace(parameters=list(START))
    other = {**START, "b": START["b"] + 1}
    assert KSeed().receive(task, received, START, START) is START
    with pytest.raises(RunError, match="other initial weights"):
        KSeed().receive(task, received, other, other)
    with pytest.raises(RunError, match="no seed pool"):
        KSeed().receive(task, START, START, START)
    strategy = build()
    strategy.broadcasts(1, [0])
    strategy.initial = lambda: other
    with pytest.raises(RunError, match="other initial weights"):
        strategy.broadcasts(2, [0])
    old = build()
    old.state["pool"] = {"start": fingerprint(START), "version": 0}
    with pytest.raises(RunError, match="version 0; this fedsim makes version 1"):
        old.broadcasts(1, [0])


def test_a_resumed_run_with_another_model_stops_and_loses_nothing(tmp_path, monkeypatch):
    scenario = tiny(**KSEED, num_rounds=4, checkpoint={"every": 1})
    folder = stopped(scenario, tmp_path, 3)
    before = sorted(p.name for p in (folder / "checkpoints").iterdir())
    monkeypatch.setattr("fedsim.strategies.fedkseed.VERSION", 2)
    monkeypatch.setattr("fedsim.seedpool.VERSION", 2)
    with pytest.raises(RunError, match="version 1"):
        simulation.resume(folder)
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == before
    monkeypatch.undo()
    assert simulation.resume(folder).status == "done"
    assert json.loads((folder / "summary.json").read_text())["final_round"] == 4


def test_codecs_mods_and_other_strategies_are_refused():
    for change in ({"codec": {"up": ["none"]}}, {"mods": ["flwr.clientapp.mod:fixedclipping_mod"]}):
        with pytest.raises(PluginError, match="in a form of its own"):
            partners.check(tiny(**KSEED, **change))
    with pytest.raises(PluginError, match="sends seeds"):
        partners.check(tiny(client=CLIENT))
