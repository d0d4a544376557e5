"""Killed workers and nodes: the run goes on, to the same bits, and says what happened."""

import contextlib
import os
import random
import signal
import time

import psutil
import pytest

from fedsim import simulation
from fedsim.progress import Reporter
from tests.problems import tiny
from tests.test_engine import comparable

pytestmark = pytest.mark.slow
RAY = {"backend": "ray", "workers": 2}


def actors() -> list[psutil.Process]:
    """The worker processes of this process's Ray that hold an actor."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # zombies are of this kind, too
            if "ray::_Actor" in " ".join(process.cmdline()):
                found.append(process)
    return found


class Killer(Reporter):
    """Kills worker processes with SIGKILL when blocks answer, at random."""

    def __init__(self, seed: int, kills: int, at_once: int = 1) -> None:
        self.random = random.Random(seed)
        self.left, self.at_once = kills, at_once

    def clients_done(self, count: int) -> None:
        if self.left > 0 and self.random.random() < 0.3:
            for victim in self.random.sample(actors(), self.at_once):
                os.kill(victim.pid, signal.SIGKILL)
                self.left -= 1


def scenario(engine):
    client = {"name": "tests.clients_that_misbehave:Slow", "seconds": 0.02}
    return tiny(num_clients=20, num_rounds=6, client=client, engine=engine)


def without_retries(run):
    return [{k: v for k, v in r.items() if k != "clients/retried"} for r in comparable(run)]


@pytest.mark.parametrize(("seed", "at_once"), [(0, 1), (1, 2)])
def test_killed_workers_change_nothing(tmp_path, seed, at_once):
    whole = simulation.run(scenario({"backend": "inline"}), out=tmp_path)
    killer = Killer(seed, kills=4, at_once=at_once)
    run = simulation.run(scenario(RAY), out=tmp_path, reporter=killer)
    assert killer.left <= 0
    assert run.summary["weights_sha256"] == whole.summary["weights_sha256"]
    assert without_retries(run) == without_retries(whole)
    assert sum(r.get("clients/retried", 0) for r in run.rounds) > 0
    assert "sent out again" in "\n".join(run.events)


def test_actors_are_gone_afterwards(tmp_path):
    simulation.run(tiny(engine=RAY), out=tmp_path)
    deadline = time.monotonic() + 20
    while actors() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not actors()
