"""Predictions against the run, and refusals of what cannot be."""

import json

import pytest

from fedsim import plan, simulation
from fedsim.errors import ScenarioError
from fedsim.scenario import load
from tests.command import Command
from tests.problems import tiny

LINK = {"downlink_mbps": 8, "uplink_mbps": 8, "source": "test"}
MIX = [
    {"profile": "jetson-nano", "share": 0.5, "network": LINK},
    {"profile": "phone-mid", "share": 0.5},
]


def agree(scenario, tmp_path):
    predicted = plan.make(scenario).record()
    totals = simulation.run(scenario, out=tmp_path).summary["totals"]
    for key in ("comm/down_bytes", "comm/up_bytes"):
        assert predicted[key] == pytest.approx(totals[key], rel=0.02), key
    for key in ("time/virtual_s", "energy/joules", "work/flops", "clients/completed"):
        if scenario.devices:
            assert predicted[key] == pytest.approx(totals[key], rel=0.05), key
    return predicted


@pytest.mark.slow_variants
@pytest.mark.parametrize(
    "devices",
    [
        {},
        {"deadline_s": 0.3, "over_selection": 1.5},
        {"dropout": 0.2, "mode_rounds": 2},
        {"availability": {"name": "diurnal", "mean": 0.5}, "selection": "availability"},
    ],
)
@pytest.mark.parametrize("client", [{"local_epochs": 2}, {"local_steps": 7}])
def test_the_plan_agrees_with_the_run(tmp_path, devices, client):
    predicted = agree(
        tiny(
            num_rounds=6,
            clients_per_round=3,
            data={"partitioner": {"name": "dirichlet", "alpha": 1.0, "partition_by": "label"}},
            client={"name": "sgd", "batch_size": 4, **client},
            devices={"mix": MIX, **devices},
        ),
        tmp_path,
    )
    assert predicted["round/virtual_s_p95"] >= predicted["round/virtual_s_median"] > 0


def test_a_scenario_without_devices_is_planned_too(tmp_path):
    predicted = agree(tiny(num_rounds=4, clients_per_round=3), tmp_path)
    assert "time/virtual_s" not in predicted
    assert predicted["work/flops"] > 0


FERRET = {"client": {"name": "ferret", "local_steps": 3}, "strategy": {"name": "ferret"}}
KSEED = {
    "client": {"name": "kseed", "local_steps": 9, "batch_size": 4},
    "strategy": {"name": "fedkseed", "num_seeds": 64},
}


@pytest.mark.parametrize(("num_rounds", "method"), [(1, FERRET), (1, KSEED)])
def test_messages_that_are_no_weights_are_predicted(tmp_path, num_rounds, method):
    agree(tiny(num_rounds=num_rounds, clients_per_round=3, **method), tmp_path)


def test_personal_tests_are_predicted(tmp_path):
    agree(
        tiny(
            num_rounds=3,
            data={"client_test_fraction": 0.2},
            evaluate={"personal": True, "every": 2},
            devices={"mix": MIX},
        ),
        tmp_path,
    )


SHIPPED = ["quickstart", "million_clients", "devices_jetson80", "diurnal", "devices_phones"]


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_the_plan_agrees_with_shipped_scenarios(tmp_path, name):
    overrides = ["num_rounds=2", "engine.backend=inline", "evaluate.every=2"]
    agree(load(name, overrides), tmp_path)


SCENARIO = """\
num_rounds: 1
num_clients: 6
task: module
model: {name: "tests.problems:logistic"}
data: {path: "tests.problems:blobs"}
engine: {backend: inline}
devices:
"""


@pytest.fixture
def command(tmp_path, monkeypatch, capfd):
    return Command(tmp_path, monkeypatch, capfd)


def written(tmp_path, devices: str) -> str:
    file = tmp_path / "one.yaml"
    file.write_text(SCENARIO + devices)
    (tmp_path / "tiny.yaml").write_text(
        "kind: board\nyear: 2020\npeak_gflops: 1\nefficiency: 1\nlaunch_s: 0\nmemory_gb: 1\n"
        "memory_gb_per_s: 1\nusable_memory_gb: 1.0e-7\ncompute_w: 1\nsource: made up\n"
    )
    return str(file)


@pytest.mark.parametrize("verb", ["validate", "plan"])
def test_a_fleet_in_which_nobody_fits(tmp_path, command, verb):
    error = command.refuses(verb, written(tmp_path, "  mix: [{profile: tiny.yaml, share: 1}]\n"))
    assert f"{tmp_path}/one.yaml:8: no device of the fleet can hold a training step" in error
    assert "Nearest valid value: a profile with usable_memory_gb of at least" in error


@pytest.mark.parametrize("verb", ["validate", "plan"])
def test_a_deadline_nobody_can_meet(tmp_path, command, verb):
    devices = "  mix: [{profile: raspberry-pi-4, share: 1}]\n  deadline_s: 0.001\n"
    error = command.refuses(verb, written(tmp_path, devices))
    assert f"{tmp_path}/one.yaml:9: no client can meet the deadline of 0.001 s" in error
    value = float(error.rsplit("Nearest valid value: ", 1)[1].rstrip(".\n"))
    if verb == "plan":
        fine = written(tmp_path, devices.replace("0.001", f"{value}"))
        assert "one: 1 rounds of 6 clients" in command.prints("plan", fine)


def test_the_command_tells_who_fits(tmp_path, command):
    devices = (
        "  mix: [{profile: tiny.yaml, share: 0.5}, {profile: edge-t4, share: 0.5}]\n"
        "  network: wired\n"
    )
    out = command.prints("plan", written(tmp_path, devices))
    assert "100 B for training: out of memory" in out
    assert "answers that count: 3 a round" in out
    record = json.loads(command.prints("plan", written(tmp_path, devices), "--json"))
    fits = {d["profile"]: d["rows_at_once"] for d in record["devices"]}
    assert fits == {"tiny.yaml": 0, "edge-t4": 16}


def test_no_client_at_all_that_works(tmp_path):
    with pytest.raises(ScenarioError, match="deadline"):
        plan.make(tiny(devices={"mix": MIX, "deadline_s": 0.0001}))
