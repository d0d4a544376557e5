"""Where processor time goes: ``python -m tests.bench.profiling cnn``.

Runs a work under cProfile, which counts processor time and so bears company on the machine, and
prints the most expensive functions by their own and by their total time. Inline, this is driver and
worker together; with ``--backend ray`` it is the driver alone.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsim import simulation
from fedsim.progress import Reporter
from fedsim.scenario import Scenario
from tests.bench.peers.fedsim import scenario
from tests.bench.works import WORKS

WARM_UP = 1


class Profiler(Reporter):
    """Profiles the rounds after the warm-up."""

    def __init__(self, last: int) -> None:
        self.profile = cProfile.Profile(time.process_time)
        self.last = last

    def round_done(self, record: Mapping[str, Any]) -> None:
        """Start after the warm-up, stop before the round that ends with tests."""
        if record["round"] == WARM_UP:
            self.started = time.process_time()
            self.profile.enable()
        elif record["round"] == self.last:
            self.profile.disable()
            self.seconds = time.process_time() - self.started


def main() -> None:
    """Profile one work."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.profiling", description=__doc__)
    parser.add_argument("work", choices=WORKS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backend", choices=("inline", "ray"), default="inline")
    parser.add_argument("--lines", type=int, default=30)
    arguments = parser.parse_args()
    work, last = WORKS[arguments.work], WARM_UP + arguments.rounds
    profiler = Profiler(last)
    values = scenario(work, last + 1, workers=2, backend=arguments.backend)
    with tempfile.TemporaryDirectory() as out:
        simulation.run(Scenario.model_validate(values), out=Path(out), reporter=profiler)
    clients = work.cohort * arguments.rounds
    print(f"{profiler.seconds:.3f} s of processor time, {clients} clients")
    statistics = pstats.Stats(profiler.profile).strip_dirs()
    for order in ("tottime", "cumtime"):
        statistics.sort_stats(order).print_stats(arguments.lines)


if __name__ == "__main__":
    main()
