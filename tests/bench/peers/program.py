"""The frame of a peer's program: arguments in, one line of JSON out."""

from __future__ import annotations

import _frozen_importlib  # where every import goes through
import argparse
import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from tests.bench.works import WARM_UP, WORKS, Work


@dataclass
class Result:
    """What a peer measured.

    Attributes:
        seconds: Of each round, from the end of the round before.
        losses: Mean training loss of each round.
        steps: Local steps in a round.
        num_trainable: Numbers that are trained and exchanged.
        startup_s: From the start of the process to the first round.
        cpu_per_round: Processor seconds of all processes together, after the warm-up.
        others_cpu_per_round: Processor seconds that other programs took meanwhile.
        parts_s: What the start-up consists of, where it is known.
        accuracy: On test rows after the last round, where it is known.
    """

    seconds: list[float]
    losses: list[float]
    steps: float
    num_trainable: int
    startup_s: float
    cpu_per_round: float | None
    others_cpu_per_round: float | None
    parts_s: dict[str, float] = field(default_factory=dict)
    accuracy: float | None = None
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Arguments:
    """What a peer is asked to do."""

    work: Work
    rounds: int
    workers: int
    backend: str
    option: str = ""

    @classmethod
    def parse(cls) -> Arguments:
        """From the command line."""
        parser = argparse.ArgumentParser()
        parser.add_argument("work", choices=WORKS)
        parser.add_argument("--rounds", type=int, required=True)
        parser.add_argument("--workers", type=int, required=True)
        parser.add_argument("--backend", default="ray")
        parser.add_argument("--option", default="", help="fedsim's, from tests.bench.options")
        given = parser.parse_args()
        return cls(WORKS[given.work], given.rounds, given.workers, given.backend, given.option)


class Meter:
    """Reads the clocks: the wall's after every round, the processors' after warm-up and the end."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self.seconds: list[float] = []
        self.startup_s = 0.0
        self._cpu: list[tuple[float, float]] = []

    def begin(self) -> None:
        """The first round begins."""
        self.startup_s = since_start()
        self._begun = time.perf_counter()

    def round_done(self) -> None:
        """A round ended and the next one begins."""
        self.seconds.append(time.perf_counter() - self._begun)
        if len(self.seconds) in (WARM_UP, self.rounds):
            self._cpu.append((_processor_seconds(), _busy_seconds()))
        self._begun = time.perf_counter()

    @property
    def cpu_per_round(self) -> float | None:
        """Processor seconds of a round after the warm-up."""
        if len(self._cpu) < 2 or not self._cpu[1][1]:
            return None
        return (self._cpu[1][0] - self._cpu[0][0]) / (self.rounds - WARM_UP)

    @property
    def others_cpu_per_round(self) -> float | None:
        """Processor seconds that everything else on the machine took in a round."""
        if self.cpu_per_round is None:
            return None
        busy = (self._cpu[1][1] - self._cpu[0][1]) / (self.rounds - WARM_UP)
        return max(0.0, busy - self.cpu_per_round)


class ImportClock:
    """Adds up how long the main thread imports, wherever in the program it does so."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._inside = False
        self._load = _frozen_importlib._find_and_load
        _frozen_importlib._find_and_load = self._timed

    def _timed(self, name: str, *rest: Any) -> Any:
        if self._inside or threading.current_thread() is not threading.main_thread():
            return self._load(name, *rest)
        self._inside, begun = True, time.perf_counter()
        try:
            return self._load(name, *rest)
        finally:
            self._inside = False
            self.seconds += time.perf_counter() - begun


def since_start() -> float:
    """Seconds since the harness started this program."""
    return time.time() - float(os.environ["BENCH_STARTED"])


def _processor_seconds() -> float:
    """Of all living processes that the harness started through this program; 0 if not Linux."""
    wanted = f"BENCH_TAG={os.environ['BENCH_TAG']}".encode()
    ticks = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or belongs to somebody else
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _busy_seconds() -> float:
    """Of all processors, by anybody; 0 if not Linux."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    values = [int(x) for x in stat.read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(values) - values[3] - values[4]) / os.sysconf("SC_CLK_TCK")


def main(run: Callable[[Arguments], Result], *libraries: str) -> None:
    """Run a peer and print its result as the last line."""
    result = run(Arguments.parse())
    result.versions = {name: metadata.version(name) for name in ("torch", "numpy", *libraries)}
    print("\n" + json.dumps(asdict(result)), flush=True)
