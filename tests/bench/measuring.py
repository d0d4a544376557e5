"""Measure a work: all peers in turn, again and again, then medians."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from statistics import median
from typing import Any

from tests.bench import checks, machine, options
from tests.bench.running import (
    COMMAND_ROUNDS,
    INLINE,
    PEERS,
    Outcome,
    run_command,
    run_peer,
    with_option,
)
from tests.bench.works import WARM_UP, Work

Record = dict[str, Any]


def measure(
    work: Work, peers: Sequence[str], rounds: int, repeats: int, patience_s: float
) -> Record:
    """Run every peer ``repeats`` times, interleaved; a failed peer is recorded with its reason.

    fedsim runs with each option of the work, too.
    """
    commands = {peer: PEERS[peer] for peer in peers}
    if "fedsim" in peers:
        commands |= {name: with_option(name) for name in options.of(work)}
    outcomes: dict[str, list[Outcome]] = {peer: [] for peer in commands}
    others: list[float] = []
    for repeat in range(1, repeats + 1):
        for peer, command in commands.items():
            others.append(machine.wait_until_quiet(patience_s))
            outcome = run_peer(command, work, rounds)
            outcomes[peer].append(outcome)
            _tell(work.name, repeat, peer, outcome)
    results = {
        peer: runs[-1].result
        for peer, runs in outcomes.items()
        if peer in PEERS and runs[-1].result is not None
    }
    return {
        "work": work.name,
        "title": work.title,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "rounds": rounds,
        "repeats": repeats,
        "machine": machine.facts(),
        "others_busy": others,
        "peers": _with_ratios({peer: _summary(runs, work) for peer, runs in outcomes.items()}),
        "differences": checks.differences(work, results),
    }


def measure_command(work: Work, repeats: int, patience_s: float) -> Record:
    """Seconds from command to exit of ``fedsim run``."""
    outcomes = []
    for repeat in range(1, repeats + 1):
        machine.wait_until_quiet(patience_s)
        outcomes.append(run_command(work))
        _tell(work.name, repeat, "command", outcomes[-1])
    good = [o.elapsed_s for o in outcomes if o.result is not None]
    return {
        "rounds": COMMAND_ROUNDS,
        "seconds": _median(good),
        "all": [round(x, 2) for x in good],
        "failed": sorted({o.reason for o in outcomes if o.result is None}),
    }


def measure_startup(works: Sequence[Work], repeats: int, patience_s: float) -> Record:
    """Seconds from the start of the process to the first round, inline and with Ray."""
    starts: Record = {}
    for work in works:
        for backend, command in (("inline", INLINE), ("ray", PEERS["fedsim"])):
            runs = []
            for repeat in range(1, repeats + 1):
                machine.wait_until_quiet(patience_s)
                runs.append(run_peer(command, work, 0))
                _tell(work.name, repeat, f"start-up {backend}", runs[-1])
            good = [run.result for run in runs if run.result is not None]
            starts[f"{work.name}, {backend}"] = {
                "startup_s": _median([r["startup_s"] for r in good]),
                "of_which": {
                    part: _median([r["parts_s"][part] for r in good])
                    for part in (good[0]["parts_s"] if good else {})
                },
                "failed": sorted({run.reason for run in runs if run.result is None}),
            }
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "repeats": repeats,
        "machine": machine.facts(),
        "starts": starts,
    }


def _summary(runs: list[Outcome], work: Work) -> Record:
    good = [run.result for run in runs if run.result is not None]
    by_repeat = [median(result["seconds"][WARM_UP:]) for result in good]
    return {
        "seconds_per_round": _median(by_repeat, 5),
        "cpu_per_round": _median([r["cpu_per_round"] for r in good if r["cpu_per_round"]], 4),
        "others_cpu_per_round": [round(r["others_cpu_per_round"] or 0.0, 4) for r in good],
        "by_repeat": [round(x, 5) for x in by_repeat],
        "first_round_done_s": _median([r["startup_s"] + r["seconds"][0] for r in good]),
        "command_s": _median([run.elapsed_s for run in runs if run.result is not None]),
        "accuracy": good[-1]["accuracy"] if good else None,
        "final_loss": good[-1]["losses"][-1] if good else None,
        "steps_per_round": good[-1]["steps"] if good else None,
        "versions": good[-1]["versions"] if good else {},
        "failed": sorted({run.reason for run in runs if run.result is None}),
    }


def _with_ratios(peers: Record) -> Record:
    for key, ratio in (("seconds_per_round", "ratio_to_bare"), ("cpu_per_round", "cpu_ratio")):
        floor = peers.get("bare", {}).get(key)
        for summary in peers.values():
            mine = summary[key]
            summary[ratio] = round(mine / floor, 3) if mine and floor else None
    return peers


def _median(values: Sequence[float], digits: int = 2) -> float | None:
    return round(median(values), digits) if values else None


def _tell(work: str, repeat: int, peer: str, outcome: Outcome) -> None:
    if outcome.result is None:
        text = f"FAILED: {outcome.reason}"
    elif outcome.result.get("seconds"):
        seconds = outcome.result["seconds"]
        text = f"{median(seconds[WARM_UP:] or seconds):.4f} s a round"
    else:
        text = "done"
    print(f"{work} {repeat} {peer}: {text}, {outcome.elapsed_s:.1f} s in all", file=sys.stderr)
