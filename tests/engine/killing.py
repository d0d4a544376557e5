"""Kills processes of runs at random times: workers, nodes, drivers. Used by tests and by the soak.

Every killer draws its times from a seeded generator and counts what it really killed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from glob import glob
from pathlib import Path
from typing import Any, Self, TypeVar

import psutil

from fedsim import simulation
from fedsim.errors import OutputError
from fedsim.progress import Reporter
from fedsim.results import Run
from fedsim.scenario import Scenario
from tests.engine.runs import MISBEHAVE
from tests.problems import tiny

RAY = {"backend": "ray", "workers": 2}
RAYS = ("raylet", "gcs_server")  # processes of Ray's own, beside its workers
PRELOADED = ["tests.engine.killing", "tests.engine.clients_that_misbehave", "tests.problems"]
Seen = TypeVar("Seen")


def slow_scenario(engine: dict[str, Any], **changes: Any) -> Scenario:
    """Rounds of about a second, with private states and a checkpoint each.

    On Ray they take longer, to the same result: a worker that was killed is away for seconds.
    """
    seconds = 0.15 if engine["backend"] == "ray" else 0.02
    client = {"name": MISBEHAVE + "SlowCounting", "seconds": seconds}
    settings = {"num_clients": 24, "num_rounds": 8, "client": client}
    settings |= {"strategy": {"name": "fedadam"}}
    return tiny(**{**settings, "checkpoint": {"every": 1}, **changes}, engine=engine)


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    """Ray's workers below ``process``.

    Known by a thread of theirs: a copy made after ``datasets`` has put every environment variable
    in another place, as it does whenever it loads something, cannot show Ray's title.
    """
    return [p for p in descendants(process) if "worker.io" in threads(p)]


def copies_of(process: psutil.Process) -> list[psutil.Process]:
    """Copies of the fork server of ``process``, those that Ray does not know yet included."""
    servers = [p for p in descendants(process) if parent(p) == process and name(p) not in RAYS]
    return [p for p in descendants(process) if parent(p) in servers]


def descendants(process: psutil.Process) -> list[psutil.Process]:
    """All processes below one, or none when it is gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.children(recursive=True)
    return []


def parent(process: psutil.Process) -> psutil.Process | None:
    """Its parent, or none when one of them is gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.parent()
    return None


def name(process: psutil.Process | None) -> str:
    """The name, empty for a process that is gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.name() if process else ""
    return ""


def command(process: psutil.Process) -> str:
    """The command line, empty for a process that is gone or a zombie."""
    with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        return " ".join(process.cmdline())
    return ""


def threads(process: psutil.Process) -> set[str]:
    """The names of a process's threads, empty for one that is gone."""
    names = set()
    for file in glob(f"/proc/{process.pid}/task/*/comm"):
        with contextlib.suppress(OSError):
            names.add(Path(file).read_text().strip())
    return names


class Killer(Reporter):
    """A thread that does harm at random times, from a run's first answer to its end.

    Args:
        rng: Draws the pauses.
        harm: Does it; returns how many processes died of it.
        most: Stops after this many.
        pause_s: Longest pause; the mean one is half of it.
    """

    def __init__(
        self, rng: random.Random, harm: Callable[[], int], most: int, pause_s: float = 2.0
    ) -> None:
        self.rng, self.harm, self.most, self.pause_s = rng, harm, most, pause_s
        self.kills = 0
        self._over, self._begun = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._begun.set()
        self._thread.join()

    def clients_done(self, count: int) -> None:
        """The run has begun to work."""
        self._begun.set()

    def _work(self) -> None:
        self._begun.wait()
        while self.kills < self.most:
            if self._over.wait(self.rng.uniform(0, self.pause_s)):
                return
            self.kills += self.harm()


def kill_workers(rng: random.Random, at_once: int) -> Callable[[], int]:
    """Harm: SIGKILL for ``at_once`` workers of this process, when so many are alive."""
    me = psutil.Process()

    def harm() -> int:
        alive = workers_of(me)
        if len(alive) < at_once:
            return 0  # those that were killed take a while to come back
        for victim in rng.sample(alive, at_once):
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
        return at_once

    return harm


class Nodes(Reporter):
    """A Ray cluster of a head and one more node, which is killed and replaced when clients answer.

    Ray starts nodes in the main thread only, so this killer has no thread of its own.
    """

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 1, "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.node = self.cluster.add_node(num_cpus=1)
        self.address: str = self.cluster.address
        self.kills = 0

    def plan(self, rng: random.Random, most: int, answers: int) -> None:
        """Kill ``most`` times, at random ones of a run's ``answers``."""
        self.due = sorted(rng.sample(range(answers // 10, answers * 9 // 10), most))
        self.kills, self.answers = 0, 0

    def clients_done(self, count: int) -> None:
        """SIGKILL for every process of the second node, if it is time; another takes its place."""
        self.answers += count
        if self.kills < len(self.due) and self.answers >= self.due[self.kills]:
            self.kills += 1
            self.cluster.remove_node(self.node, allow_graceful=False)
            self.node = self.cluster.add_node(num_cpus=1)


@contextmanager
def two_nodes() -> Iterator[Nodes]:
    """Two Ray nodes with one CPU each on this machine."""
    nodes = Nodes()
    try:
        yield nodes
    finally:
        nodes.cluster.shutdown()


def _drive(scenario: Scenario, out: Path, said: Path) -> None:
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    folder = next(iter(out.glob("tiny/*")), None)
    if folder is None:
        simulation.run(scenario, out=out)
        return
    try:
        simulation.resume(folder)
    except OutputError as error:
        if "is finished" in str(error):
            return  # it was killed after its last line
        if "no checkpoint" not in str(error):
            raise
        folder.rename(folder.parent.parent / f"early-{folder.name}-{time.monotonic_ns()}")
        simulation.run(scenario, out=out)


class Drivers:
    """Runs in processes of their own, forked from one that has imported everything."""

    def __init__(self) -> None:
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOADED)

    def start(self, scenario: Scenario, out: Path) -> Any:
        """Run the scenario, or resume what is in ``out``; with an early death, run it again."""
        process = self.context.Process(target=_drive, args=(scenario, out, said_by(out)))
        process.start()
        return process

    def run(self, scenario: Scenario, out: Path) -> Run:
        """Run or resume to the end."""
        process = self.start(scenario, out)
        process.join()
        assert process.exitcode == 0, said_by(out).read_text()
        (folder,) = out.glob("tiny/*")
        return Run.open(folder)

    def run_with_kills(
        self, scenario: Scenario, out: Path, rng: random.Random, kills: int, longest_s: float
    ) -> tuple[Run, int]:
        """Kill and resume again and again; the run at its end, and how many kills it survived."""
        done = 0
        for _ in range(10 * kills):
            process = self.start(scenario, out)
            process.join(rng.uniform(0, longest_s))
            if process.exitcode is not None:
                assert process.exitcode == 0, said_by(out).read_text()
                break
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            done += 1
            if done == kills:
                break
        (folder, *_) = [*out.glob("tiny/*"), None]
        finished = folder is not None and Run.open(folder).status == "done"
        return (Run.open(folder) if finished else self.run(scenario, out)), done


def said_by(out: Path) -> Path:
    """Where the standard error of drivers that work in ``out`` goes."""
    out.mkdir(parents=True, exist_ok=True)
    return out / "stderr.txt"


def wait_for(look: Callable[[], Seen], driver: Any) -> Seen:
    """Wait until a driver that is still at work shows something; what that is."""
    deadline = time.monotonic() + 120
    while not (seen := look()):
        assert driver.exitcode is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return seen
