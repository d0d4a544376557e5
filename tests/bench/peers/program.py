"""The frame of a peer's program: arguments in, one line of JSON out."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata

from tests.bench.works import WORKS, Work


@dataclass
class Result:
    """What a peer measured.

    Attributes:
        seconds: Of each round, from the end of the round before.
        losses: Mean training loss of each round.
        steps: Local steps in a round.
        num_trainable: Numbers that are trained and exchanged.
        startup_s: From the start of the process to the first round.
        parts_s: What the start-up consists of, where it is known.
    """

    seconds: list[float]
    losses: list[float]
    steps: float
    num_trainable: int
    startup_s: float
    parts_s: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Arguments:
    """What a peer is asked to do."""

    work: Work
    rounds: int
    workers: int
    backend: str

    @classmethod
    def parse(cls) -> Arguments:
        """From the command line."""
        parser = argparse.ArgumentParser()
        parser.add_argument("work", choices=WORKS)
        parser.add_argument("--rounds", type=int, required=True)
        parser.add_argument("--workers", type=int, required=True)
        parser.add_argument("--backend", default="ray")
        given = parser.parse_args()
        return cls(WORKS[given.work], given.rounds, given.workers, given.backend)


def since_start() -> float:
    """Seconds since the harness started this program."""
    return time.time() - float(os.environ["BENCH_STARTED"])


def differences(times: Sequence[float]) -> list[float]:
    """Seconds between consecutive readings of a clock."""
    return [after - before for before, after in itertools.pairwise(times)]


def main(run: Callable[[Arguments], Result], *libraries: str) -> None:
    """Run a peer and print its result as the last line."""
    result = run(Arguments.parse())
    result.versions = {name: metadata.version(name) for name in ("torch", "numpy", *libraries)}
    print("\n" + json.dumps(asdict(result)), flush=True)
