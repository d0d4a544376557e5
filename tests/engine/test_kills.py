"""Killed workers and nodes: the run goes on, to the same bits, and says what happened."""

import contextlib
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fedsim import simulation
from fedsim.progress import Reporter
from fedsim.results import Run
from tests.engine.runs import MISBEHAVE, comparable, outcome
from tests.problems import tiny

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
        alive = actors()  # one that was killed takes a while to come back
        if self.left > 0 and len(alive) >= self.at_once and self.random.random() < 0.3:
            for victim in self.random.sample(alive, self.at_once):
                with contextlib.suppress(psutil.NoSuchProcess):
                    victim.kill()
                self.left -= 1


def scenario(engine):
    client = {"name": MISBEHAVE + "Slow", "seconds": 0.02}
    return tiny(num_clients=20, num_rounds=6, client=client, engine=engine)


@pytest.mark.parametrize(("seed", "at_once"), [(0, 1), (1, 2)])
def test_killed_workers_change_nothing(tmp_path, seed, at_once):
    whole = simulation.run(scenario({"backend": "inline"}), out=tmp_path)
    killer = Killer(seed, kills=4, at_once=at_once)
    run = simulation.run(scenario(RAY), out=tmp_path, reporter=killer)
    assert killer.left <= 4 - at_once  # at least once; a returning worker may be too late
    assert run.summary["weights_sha256"] == whole.summary["weights_sha256"]
    assert outcome(run) == outcome(whole)
    assert sum(r.get("clients/retried", 0) for r in run.rounds) > 0
    assert "sent out again" in "\n".join(run.events)


def test_actors_are_gone_afterwards(tmp_path):
    simulation.run(tiny(engine=RAY), out=tmp_path)
    deadline = time.monotonic() + 20
    while actors() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not actors()


@pytest.fixture
def two_nodes():
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


class NodeKiller(Reporter):
    """Takes the second node away in the middle of a round."""

    def __init__(self, cluster) -> None:
        self.cluster = cluster
        self.answers = 0

    def clients_done(self, count: int) -> None:
        self.answers += 1
        if self.answers == 14:  # the second round has ten blocks
            node = next(n for n in self.cluster.worker_nodes)
            self.cluster.remove_node(node, allow_graceful=False)


def test_two_nodes_give_the_bits_of_one_and_losing_a_node_changes_nothing(tmp_path, two_nodes):
    whole = simulation.run(scenario({"backend": "inline"}), out=tmp_path)
    engine = {**RAY, "address": two_nodes.address}
    both = simulation.run(scenario(engine), out=tmp_path)
    assert comparable(both) == comparable(whole)
    lost = simulation.run(scenario(engine), out=tmp_path, reporter=NodeKiller(two_nodes))
    assert outcome(lost) == outcome(whole)
    assert lost.summary["weights_sha256"] == whole.summary["weights_sha256"]


DRIVER = """
import sys
from pathlib import Path
from fedsim import simulation
from tests.engine.runs import six_rounds
client = {"name": MISBEHAVE + "Slow", "seconds": 0.05}
scenario = six_rounds(client=client, strategy={"name": "fedadam"})
simulation.run(scenario, out=Path(sys.argv[1]))
"""


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_driver_is_resumed_to_the_same_bits(tmp_path, seed):
    root = Path(__file__).parents[2]
    whole = subprocess.run([sys.executable, "-c", DRIVER, tmp_path / "whole"], cwd=root)
    assert whole.returncode == 0
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, tmp_path / "killed"], cwd=root)
    wanted = random.Random(seed).randrange(1, 6)
    while not list((tmp_path / "killed").glob(f"tiny/*/checkpoints/round-*{wanted}.safetensors")):
        assert driver.poll() is None
        time.sleep(0.01)
    time.sleep(random.Random(seed).random() * 0.2)
    driver.kill()
    driver.wait()
    (folder,) = (tmp_path / "killed").glob("tiny/*")
    (other,) = (tmp_path / "whole").glob("tiny/*")
    assert Run.open(folder).status == "running"
    assert comparable(simulation.resume(folder)) == comparable(Run.open(other))
