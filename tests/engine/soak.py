"""Kill and resume runs for as long as you like; ends at the first run that differs.

    python -m tests.engine.soak --minutes 30 --seed 1

Each turn draws a method, a seed and a kind of death: drivers (killed and resumed several times),
single workers, two workers at once, Ray nodes. Its result must equal that of one process that is
left alone. The seed of a turn is printed; ``--seed N --turns 1`` repeats it.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedsim import simulation
from fedsim.results import Run
from fedsim.scenario import Scenario
from tests.engine.killing import RAY, Drivers, Killer, kill_workers, slow_scenario, two_nodes
from tests.engine.runs import STOCK, outcome

FEEDBACK = {"name": "topk", "density": 0.3, "error_feedback": {"name": "ef21"}}
FLEET = {"mix": [{"profile": "phone-spread", "share": 1.0}], "speed_sigma": 1.5}
METHODS: tuple[dict[str, Any], ...] = (
    {"strategy": {"name": "fedavg"}},
    {"strategy": {"name": "fedadam"}},
    {"strategy": {"name": STOCK + "FedAdam"}},
    {"strategy": {"name": STOCK + "FedMedian"}},
    {"strategy": {"name": STOCK + "Krum", "num_malicious_nodes": 1}},
    {"codec": {"up": [FEEDBACK], "down": [FEEDBACK]}},
    {"strategy": {"name": "fedbuff", "buffer_size": 6}, "devices": FLEET},
)
Turn = Callable[[random.Random, dict[str, Any], Path], tuple[Run, int]]


def drivers(rng: random.Random, changes: dict[str, Any], out: Path) -> tuple[Run, int]:
    """Kill the driver of a run in one process."""
    scenario = slow_scenario({"backend": "inline"}, **changes)
    return Drivers().run_with_kills(scenario, out, rng, kills=6, longest_s=4.0)


def ray_drivers(rng: random.Random, changes: dict[str, Any], out: Path) -> tuple[Run, int]:
    """Kill the driver of a run on Ray."""
    scenario = slow_scenario(RAY, **changes)
    return Drivers().run_with_kills(scenario, out, rng, kills=2, longest_s=25.0)


def _workers(at_once: int) -> Turn:
    def turn(rng: random.Random, changes: dict[str, Any], out: Path) -> tuple[Run, int]:
        with Killer(rng, kill_workers(rng, at_once), most=8) as killer:
            run = simulation.run(slow_scenario(RAY, **changes), out=out, reporter=killer)
        return run, killer.kills

    return turn


def nodes(rng: random.Random, changes: dict[str, Any], out: Path) -> tuple[Run, int]:
    """Kill one of two nodes, again and again."""
    with two_nodes() as cluster:
        cluster.plan(rng, 3, answers=24 * 8)
        scenario = slow_scenario({**RAY, "address": cluster.address}, **changes)
        run = simulation.run(scenario, out=out, reporter=cluster)
    return run, cluster.kills


TURNS: dict[str, Turn] = {
    "drivers": drivers,
    "drivers of Ray": ray_drivers,
    "workers": _workers(1),
    "pairs of workers": _workers(2),
    "nodes": nodes,
}


def expected(changes: dict[str, Any], out: Path) -> dict[str, object]:
    """What one undisturbed process makes of it."""
    scenario: Scenario = slow_scenario({"backend": "inline"}, **changes)
    return outcome(simulation.run(scenario, out=out))


def turn(seed: int, killed: Counter[str]) -> None:
    """One run, killed at random; raises when it differs."""
    rng = random.Random(seed)
    kind = rng.choice(list(TURNS))
    method = rng.choice(METHODS)
    changes = {**method, "seed": rng.randrange(1000)}
    folder = Path(tempfile.mkdtemp(prefix="fedsim-soak-"))
    start = time.monotonic()
    run, kills = TURNS[kind](rng, changes, folder / "killed")
    same = outcome(run) == expected(changes, folder / "whole")
    killed[kind] += kills
    verdict = "same bits" if same else f"DIFFERENT, see {folder}"
    what = f"{method}, {kills} kills of {kind}"
    print(f"seed {seed}: {what}, {time.monotonic() - start:.0f} s, {verdict}", flush=True)
    if not same:
        sys.exit(1)
    shutil.rmtree(folder)


def main() -> None:
    """Turns until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--turns", type=int, default=10**9)
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    killed: Counter[str] = Counter()
    seed = options.seed
    while time.monotonic() < end and seed < options.seed + options.turns:
        turn(seed, killed)
        seed += 1
    print(f"{seed - options.seed} runs, {killed.total()} kills ({dict(killed)}), all the same bits")


if __name__ == "__main__":
    main()
