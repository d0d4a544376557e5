"""Clients that misbehave are rejected, named and counted, and the round goes on without them."""

import time

import numpy as np
import pytest

from fedsim import simulation
from fedsim.checkpoint import Checkpoints
from fedsim.errors import RunError
from fedsim.results import Run
from fedsim.strategies.fedavg import FedAvg
from fedsim.task import Task
from tests.engine.clients_that_misbehave import DAMAGES, FAULTS, LIES
from tests.engine.runs import MISBEHAVE, STOCK
from tests.problems import tiny

RAY = {"backend": "ray", "workers": 2}


def check_one_failed(run, *words):
    """Client 2 failed in both rounds, and its five neighbours did not."""
    assert run.status == "done"
    for record in run.rounds[1:]:
        assert record["clients/failed"] == 1
        assert record["clients/completed"] == 5
    failed = [row for row in run.clients if row["status"] == "failed"]
    assert [(row["round"], row["client"]) for row in failed] == [(1, 2), (2, 2)]
    for word in ("client 2, round 1, ", *words):
        assert word in failed[0]["error"]
        assert word in "\n".join(run.events)


@pytest.mark.parametrize("fault", [f for f in FAULTS if f != "marked"])
@pytest.mark.parametrize("strategy", ["fedavg", STOCK + "FedMedian"])
def test_a_failing_client_is_named_counted_and_left_out(tmp_path, fault, strategy):
    client = {"name": MISBEHAVE + "Faulty", "fault": fault, "victims": [2]}
    run = simulation.run(tiny(client=client, strategy={"name": strategy}), out=tmp_path)
    check_one_failed(run, "train", FAULTS[fault][1])


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["raise", "exit", "memory", "tensor"])
def test_on_ray_too(tmp_path, fault):
    client = {"name": MISBEHAVE + "Faulty", "fault": fault, "victims": [2]}
    run = simulation.run(tiny(client=client, engine=RAY), out=tmp_path)
    check_one_failed(run, "train", FAULTS[fault][1])
    assert sum(r.get("clients/retried", 0) for r in run.rounds) == 0


@pytest.mark.parametrize("damage", [*DAMAGES, *LIES])
@pytest.mark.parametrize("strategy", ["fedavg", STOCK + "FedMedian"])
def test_a_damaged_payload_is_rejected(tmp_path, damage, strategy):
    client = {"name": MISBEHAVE + "Faulty", "fault": "marked", "victims": [2]}
    codec = {"up": {"name": MISBEHAVE + "Damaging", "damage": damage}}
    scenario = tiny(client=client, codec=codec, strategy={"name": strategy})
    run = simulation.run(scenario, out=tmp_path)
    check_one_failed(run, "payload")


APP_FAULTS = {
    "broadcastable": "float32 (1,), not",
    "half": "float16",
    "nan": "NaN or infinity",
    "weight": "num_examples is nan",
    "no weight": "num-examples",
    "weights": "num_examples is None",
}


@pytest.mark.parametrize("fault", APP_FAULTS)
def test_an_app_whose_reply_is_wrong_is_a_failed_client(tmp_path, fault, monkeypatch):
    from tests.engine import clients_that_misbehave

    app = clients_that_misbehave.faulty_app(fault)
    monkeypatch.setattr(clients_that_misbehave, "app", app, raising=False)
    run = simulation.run(tiny(client={"name": MISBEHAVE + "app"}), out=tmp_path)
    check_one_failed(run, APP_FAULTS[fault])


def test_a_state_that_no_file_can_hold_is_the_clients_failure(tmp_path):
    client = {"name": MISBEHAVE + "Hoarding", "state_bytes": 8, "odd": True}
    run = simulation.run(tiny(client=client), out=tmp_path)
    check_one_failed(run, "client.state holds odd")


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam", STOCK + "FedMedian", STOCK + "FedAvg"])
def test_metrics_that_only_some_clients_report_have_no_mean(tmp_path, strategy):
    scenario = tiny(client={"name": MISBEHAVE + "SomeMetrics"}, strategy={"name": strategy})
    run = simulation.run(scenario, out=tmp_path)
    assert run.status == "done"
    assert "train/odd" not in run.rounds[-1]
    assert run.rounds[-1]["train/loss"] > 0
    assert [row.get("odd") for row in run.clients] == [None, 1.0] * 6


def test_a_failing_client_does_not_change_the_others(tmp_path):
    client = {"name": MISBEHAVE + "Faulty", "fault": "nan", "victims": [2]}
    client |= {"learning_rate": 0.1, "batch_size": 8}
    faulty = simulation.run(tiny(client=client, num_rounds=1), out=tmp_path)
    good = simulation.run(tiny(num_rounds=1), out=tmp_path)
    theirs = {r["client"]: r["train_loss"] for r in good.clients}
    mine = {r["client"]: r["train_loss"] for r in faulty.clients if r["status"] == "ok"}
    assert mine == {k: v for k, v in theirs.items() if k != 2}


def test_too_many_failures_stop_the_run_and_leave_a_readable_folder(tmp_path):
    client = {
        "name": MISBEHAVE + "Faulty",
        "fault": "raise",
        "victims": [0, 1, 2, 3],
    }
    with pytest.raises(RunError, match=r"4 of 6 clients failed in round 1.*the dog ate it"):
        simulation.run(tiny(client=client), out=tmp_path)
    (folder,) = tmp_path.glob("tiny/*")
    run = Run.open(folder)
    assert run.status == "failed"
    assert run.summary["exit_code"] == 3
    assert run.rounds[-1]["clients/failed"] == 4


@pytest.mark.parametrize(
    "engine", [{"backend": "inline"}, pytest.param(RAY, marks=pytest.mark.slow)]
)
def test_a_client_that_hangs_is_a_failed_client(tmp_path, engine):
    client = {"name": MISBEHAVE + "Slow", "seconds": 60.0, "victims": [4]}
    limited = {**engine, "client_timeout_s": 0.5}
    run = simulation.run(tiny(client=client, engine=limited, num_rounds=1), out=tmp_path)
    (failed,) = [row for row in run.clients if row["status"] == "failed"]
    assert failed["client"] == 4
    assert "client_timeout_s = 0.5" in failed["error"]
    assert failed["time/wall_s"] < 30


@pytest.mark.parametrize(
    "engine", [{"backend": "inline"}, pytest.param(RAY, marks=pytest.mark.slow)]
)
def test_a_client_that_hangs_and_catches_everything_is_a_failed_client(tmp_path, engine):
    client = {"name": MISBEHAVE + "Slow", "seconds": 60.0, "victims": [4], "stubborn": True}
    limited = {**engine, "client_timeout_s": 0.5}
    run = simulation.run(tiny(client=client, engine=limited, num_rounds=1), out=tmp_path)
    (failed,) = [row for row in run.clients if row["status"] == "failed"]
    assert "client_timeout_s = 0.5" in failed["error"]
    assert failed["time/wall_s"] < 30


@pytest.mark.slow
def test_a_client_that_hangs_in_compiled_code_is_a_failed_client(tmp_path, impatient):
    client = {"name": MISBEHAVE + "Slow", "victims": [4], "compiled": True}
    limited = {**RAY, "client_timeout_s": 0.5}
    run = simulation.run(tiny(client=client, engine=limited, num_rounds=1), out=tmp_path)
    (failed,) = [row for row in run.clients if row["status"] == "failed"]
    assert failed["client"] == 4
    assert "it ended every worker process" in failed["error"]
    assert run.rounds[-1]["clients/completed"] == 5
    assert run.rounds[-1]["clients/retried"] == 1, "one death with others, one alone"


PERSONAL = {"data": {"client_test_fraction": 0.3}, "evaluate": {"personal": True}}


@pytest.fixture
def rotten(monkeypatch):
    """Makes the test rows of some clients unusable."""
    whole = Task.client_data

    def spoil(clients, what):
        def client_data(task, client, which="train"):
            if which == "test" and client in clients:
                what()
            return whole(task, client, which)

        monkeypatch.setattr(Task, "client_data", client_data)

    return spoil


def rot():
    raise ValueError("rotten rows")


def test_failed_tests_on_clients_are_counted_and_may_stop_a_run(tmp_path, rotten):
    rotten([2], rot)
    run = simulation.run(tiny(**PERSONAL), out=tmp_path)
    assert [r.get("clients/failed_tests") for r in run.rounds] == [None, 1, 1]
    assert "rotten rows" in "\n".join(run.events)
    rotten(range(6), rot)
    with pytest.raises(RunError, match=r"6 of 6 clients failed in round 1.*rotten rows"):
        simulation.run(tiny(**PERSONAL), out=tmp_path / "all")
    (folder,) = (tmp_path / "all").glob("tiny/*")
    assert Run.open(folder).rounds[-1]["clients/failed_tests"] == 6


def test_a_test_that_hangs_is_a_failed_one(tmp_path, rotten):
    rotten([2], lambda: time.sleep(30))
    scenario = tiny(**PERSONAL, engine={"client_timeout_s": 0.5}, num_rounds=1)
    run = simulation.run(scenario, out=tmp_path)
    assert run.rounds[1]["clients/failed_tests"] == 1
    assert "client 2, round 1, evaluate: worked longer" in "\n".join(run.events)


def test_a_model_that_is_no_longer_finite_ends_the_run(tmp_path, monkeypatch):
    def server_update(strategy, weights, delta, state):
        state["updates"] = state.get("updates", 0) + 1
        return {n: w / np.float32(state["updates"] != 3) for n, w in weights.items()}

    monkeypatch.setattr(FedAvg, "server_update", server_update)
    scenario = tiny(num_rounds=5, checkpoint={"every": 1})
    with (
        np.errstate(all="ignore"),
        pytest.raises(RunError, match=r"after round 3 the model's .* holds NaN or infinity"),
    ):
        simulation.run(scenario, out=tmp_path)
    (folder,) = tmp_path.glob("tiny/*")
    assert [r["round"] for r in Run.open(folder).rounds] == [0, 1, 2, 3]
    kept = Checkpoints(folder, 2).latest()
    assert kept.server_round == 2
    assert all(np.isfinite(x).all() for x in kept.weights.values())
