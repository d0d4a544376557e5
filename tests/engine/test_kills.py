"""Killed workers, nodes and drivers: the run goes on, to the same bits, and says what happened."""

import random
import time

import psutil
import pytest

from fedsim import simulation
from fedsim.engine.calls import Call
from fedsim.progress import Reporter
from fedsim.results import Run
from tests.engine.killing import (
    RAY,
    RAYS,
    Drivers,
    Killer,
    descendants,
    kill_workers,
    name,
    slow_scenario,
    two_nodes,
    wait_for,
    workers_of,
)
from tests.engine.runs import outcome
from tests.problems import tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What one process makes of the scenario, undisturbed."""
    quick = slow_scenario({"backend": "inline"})
    return outcome(simulation.run(quick, out=tmp_path_factory.mktemp("whole")))


def retried(run):
    return sum(r.get("clients/retried", 0) for r in run.rounds)


def test_thirty_kills_at_random_times_change_nothing(tmp_path, expected):
    rng = random.Random(30)
    kills = {
        "drivers": kill_drivers(tmp_path, rng, expected, wanted=18),
        "workers": kill_single_and_double(tmp_path, rng, expected, wanted=10),
        "nodes": kill_nodes(tmp_path, rng, expected, wanted=2),
    }
    assert sum(kills.values()) >= 30, kills


def kill_drivers(tmp_path, rng, expected, wanted):
    """Runs in one process each, killed up to four times before they end."""
    drivers = Drivers()
    killed = 0
    for i in range(wanted):
        out = tmp_path / f"driver-{i}"
        scenario = slow_scenario({"backend": "inline"})
        most = min(4, wanted - killed)
        run, died = drivers.run_with_kills(scenario, out, rng, most, longest_s=4.0)
        assert outcome(run) == expected
        killed += died
        if killed == wanted:
            break
    return killed


def kill_single_and_double(tmp_path, rng, expected, wanted):
    """One worker at a time, then two at once."""
    killed = 0
    lost = 0
    for i in range(wanted):
        at_once = 1 + i % 2
        with Killer(rng, kill_workers(rng, at_once), most=min(6, wanted - killed)) as killer:
            out = tmp_path / f"workers-{i}"
            run = simulation.run(slow_scenario(RAY), out=out, reporter=killer)
        assert outcome(run) == expected
        killed += killer.kills
        lost += retried(run)
        if killed >= wanted:
            break
    assert lost > 0, "some kills hit a worker at work"
    return killed


def kill_nodes(tmp_path, rng, expected, wanted):
    with two_nodes() as nodes:
        nodes.plan(rng, wanted, answers=24 * 8)
        engine = {**RAY, "address": nodes.address}
        run = simulation.run(slow_scenario(engine), out=tmp_path / "nodes", reporter=nodes)
    assert outcome(run) == expected
    return nodes.kills


class KillOnce(Reporter):
    """Kills the workers of this process as soon as a client has answered."""

    kills = 0

    def clients_done(self, count):
        if not self.kills:
            for worker in workers_of(psutil.Process()):
                worker.kill()
                self.kills += 1


def test_a_call_that_waits_for_another_is_not_blamed_for_its_workers_death(tmp_path, monkeypatch):
    blamed = []
    ended = Call.ended_a_worker
    monkeypatch.setattr(Call, "ended_a_worker", lambda call: blamed.append(call) or ended(call))
    scenario = slow_scenario({**RAY, "workers": 1}, num_rounds=1)
    run = simulation.run(scenario, out=tmp_path, reporter=(killer := KillOnce()))
    assert (killer.kills, len(blamed)) == (1, 1)
    assert retried(run) > blamed[0].num_clients, "the one that waited was sent out again, too"


def test_kills_are_counted_and_named(tmp_path, expected):
    rng = random.Random(4)
    for i in range(5):  # a kill may hit a worker that has nothing to do
        with Killer(rng, kill_workers(rng, 2), most=4) as killer:
            run = simulation.run(slow_scenario(RAY), out=tmp_path / str(i), reporter=killer)
        assert outcome(run) == expected
        if retried(run):
            break
    assert killer.kills >= 2
    assert retried(run) > 0
    assert "sent out again" in "\n".join(run.events)


def test_a_killed_driver_of_ray_leaves_no_process_behind_and_is_resumed(tmp_path, expected):
    drivers = Drivers()
    driver = drivers.start(slow_scenario(RAY), tmp_path)
    wait_for(lambda: list(tmp_path.glob("tiny/*/checkpoints/round-*3.safetensors")), driver)
    me = psutil.Process(driver.pid)
    below = [p for p in descendants(me) if name(p) in RAYS] + workers_of(me)
    assert len(below) == 4
    driver.kill()
    driver.join()
    _, left = psutil.wait_procs(below, timeout=40)  # Ray's two agents take about a minute
    assert not left
    assert outcome(drivers.run(slow_scenario(RAY), tmp_path)) == expected


def test_a_run_whose_own_node_is_killed_ends_and_is_resumed(tmp_path, expected):
    drivers = Drivers()
    driver = drivers.start(slow_scenario(RAY), tmp_path)
    wait_for(lambda: list(tmp_path.glob("tiny/*/checkpoints/round-*3.safetensors")), driver)
    (raylet,) = [p for p in descendants(psutil.Process(driver.pid)) if name(p) == "raylet"]
    raylet.kill()
    driver.join(120)
    assert driver.exitcode not in (None, 0)
    (folder,) = tmp_path.glob("tiny/*")
    assert len(Run.open(folder).rounds) >= 4
    assert outcome(drivers.run(slow_scenario(RAY), tmp_path)) == expected


def test_actors_are_gone_afterwards(tmp_path):
    simulation.run(tiny(engine=RAY), out=tmp_path)
    deadline = time.monotonic() + 20
    while workers_of(psutil.Process()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not workers_of(psutil.Process())
