"""Asynchronous runs that no answer reaches: they stop and say why; those that lose many go on."""

import pytest

from fedsim import simulation
from fedsim.engine import event_loop
from fedsim.errors import RunError
from fedsim.results import Run
from fedsim.scenario import Scenario
from tests.engine.runs import MISBEHAVE
from tests.problems import tiny

PHONES = {"mix": [{"profile": "phone-spread", "share": 1.0}]}


def asynchronous(**changes) -> Scenario:
    """Six clients, three of them at work."""
    values = {"strategy": "fedasync", "devices": PHONES, "clients_per_round": 3}
    return tiny(**{**values, **changes})


@pytest.fixture
def toys(tmp_path):
    """Devices that can hold no model."""
    table = tmp_path / "toys.csv"
    table.write_text("name,memory_gb,usable_memory_gb\ntoy,1e-7,1e-7\n")
    return {"table": str(table)}


def test_where_no_device_can_hold_the_model_the_run_stops(tmp_path, toys):
    with pytest.raises(RunError, match="the last 1000 clients at work gave no answer: 1000 oom"):
        simulation.run(asynchronous(devices=toys), out=tmp_path)
    (folder,) = tmp_path.glob("tiny/*")
    assert Run.open(folder).status == "failed"


def test_in_rounds_that_is_a_warning(tmp_path, toys):
    run = simulation.run(asynchronous(strategy="fedavg", devices=toys), out=tmp_path)
    assert run.status == "done"
    words = "a round changed nothing: 0 of 3 clients answered in time, and min_replies is 1 (3 oom)"
    assert sum(words in line for line in run.events) == 2


def test_failures_that_are_allowed_are_not_waited_for_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(event_loop, "MOST_LOST", 50)
    client = {"name": MISBEHAVE + "Faulty", "victims": list(range(6))}
    with pytest.raises(RunError, match="50 failed"):
        simulation.run(asynchronous(client=client, max_failed_fraction=1.0), out=tmp_path)


def test_payloads_that_cannot_be_decoded_are_failures(tmp_path):
    client = {"name": MISBEHAVE + "Faulty", "fault": "marked", "victims": list(range(6))}
    codec = {"up": {"name": MISBEHAVE + "Damaging"}}
    with pytest.raises(RunError, match=r"100% of the latest clients failed up to round 1.*decode"):
        simulation.run(asynchronous(client=client, codec=codec), out=tmp_path)


@pytest.mark.parametrize("seed", [8, 9])
def test_failures_are_judged_over_several_updates(tmp_path, seed):
    """With seed 8 the twentieth answer is a good one, and so is all of its update."""
    client = {"name": MISBEHAVE + "Faulty", "victims": [0, 1, 2]}
    scenario = asynchronous(seed=seed, client=client, max_failed_fraction=0.4, num_rounds=60)
    with pytest.raises(RunError, match="of the latest clients failed up to round") as stop:
        simulation.run(scenario, out=tmp_path)
    assert ("the dog ate it" in str(stop.value)) == (seed == 9)


def test_many_lost_answers_stop_nothing(tmp_path):
    run = simulation.run(asynchronous(devices={**PHONES, "dropout": 0.95}), out=tmp_path)
    assert run.status == "done"
    assert run.summary["totals"]["clients/dropped"] > 20
