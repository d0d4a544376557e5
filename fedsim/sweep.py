"""Many runs of one scenario, over the values of its section ``sweep``; resumable.

Every trial is an ordinary run folder below ``<out>/sweeps/<name>/``. A trial is known by its
scenario, so a sweep that is started again does not repeat finished runs, goes on with those that
have a checkpoint, and runs what was added to it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsim.differences import short_names
from fedsim.errors import FedsimError, OutputError, ScenarioError
from fedsim.progress import Reporter
from fedsim.records import Record, dumps
from fedsim.results import Run, find_runs
from fedsim.scenario import Scenario, load
from fedsim.seeds import Seeds
from fedsim.trials import Values, as_overrides

NO_RESULT = ("engine", "checkpoint", "sweep")
"""Sections that change no result; a trial that differs in them alone is the same trial."""


@dataclass(frozen=True)
class Trial:
    """One run of a sweep: the values that it tries, and its scenario, of one seed."""

    values: Values
    scenario: Scenario

    @property
    def label(self) -> str:
        """What a person calls it.

        >>> Trial({"codec.up.density": 0.1}, Scenario.model_construct(seed=2)).label
        'density=0.1, seed 2'
        """
        names = short_names(self.values)
        values = [f"{names[key]}={as_text(value)}" for key, value in self.values.items()]
        return ", ".join((*values, f"seed {self.scenario.seed}"))


def as_text(value: object) -> str:
    """A value in a line of text: plain, or as short JSON without quotes."""
    return value if isinstance(value, str) else json.dumps(value).replace('"', "")


@dataclass
class Played:
    """How a sweep went: the runs that have a folder, and what stopped each failed trial."""

    runs: list[Run]
    failures: list[str]


def plan(file: Path, overrides: Sequence[str]) -> list[Trial]:
    """All trials of a scenario's sweep, each checked; nothing runs.

    Raises:
        ScenarioError: There is no sweep, or one of its trials is no scenario.
    """
    whole = load(file, overrides)
    if whole.sweep is None:
        raise ScenarioError(
            "the scenario has no section 'sweep'",
            where=str(file),
            hint="Add one, such as sweep: {grid: {client.learning_rate: [0.01, 0.1]}}",
        )
    found: dict[str, Trial] = {}
    others = [o for o in overrides if o.partition("=")[0].split(".")[0].strip() != "sweep"]
    for values in whole.sweep.values(Seeds(whole.seed)):
        scenario = load(file, [*others, *as_overrides(values), "sweep="])
        for seed in scenario.seeds or (scenario.seed,):
            one = scenario.model_copy(update={"seed": seed, "seeds": ()})
            found.setdefault(_identity(_record(one)), Trial(values, one))
    return list(found.values())


def play(
    trials: Sequence[Trial],
    out: Path,
    source: Path,
    make_reporter: Callable[[int], Reporter],
) -> Played:
    """Run all trials that are not finished, one after the other; failed ones stop no others.

    Args:
        trials: As ``plan`` made them.
        out: Parent of ``sweeps``.
        source: The scenario file, copied into the folders.
        make_reporter: Called with a trial's seed for each trial.
    """
    known = {_identity(run.scenario): run for run in _earlier(folder(trials, out))}
    played = Played([], [])
    for i, trial in enumerate(trials, start=1):
        identity = _identity(_record(trial.scenario))
        reporter = make_reporter(trial.scenario.seed)
        earlier = known.get(identity)
        done = earlier is not None and earlier.status == "done"
        note = ": finished before" if done else ""
        reporter.message(f"trial {i} of {len(trials)}: {trial.label}{note}")
        try:
            run = earlier if done else _run(trial, earlier, out, source, reporter)
        except FedsimError as error:
            reporter.message(f"trial {i} failed: {error}")
            played.failures.append(f"{trial.label}: {error}")
            run = next((r for r in _earlier(folder(trials, out)) if _same(r, identity)), None)
        played.runs.extend([run] if run else [])
    return played


def folder(trials: Sequence[Trial], out: Path) -> Path:
    """Where the runs of a sweep lie."""
    return out / "sweeps" / trials[0].scenario.name


def _run(trial: Trial, earlier: Run | None, out: Path, source: Path, reporter: Reporter) -> Run:
    from fedsim import simulation

    if earlier is not None:
        try:
            return simulation.resume(earlier.path, reporter=reporter)
        except OutputError as error:  # it was stopped before its first checkpoint
            reporter.message(f"starts again: {error}")
    try:
        return simulation.run(trial.scenario, out=out / "sweeps", source=source, reporter=reporter)
    except FedsimError as error:
        raise error.at(trial.scenario.where(error.key)) from error.__cause__


def _earlier(path: Path) -> Iterator[Run]:
    """Runs below a folder, finished ones last, so that they win; none without the folder."""
    runs = find_runs([path]) if any(path.glob("*/STATUS")) else []
    return iter(sorted(runs, key=lambda run: run.status == "done"))


def _same(run: Run, identity: str) -> bool:
    return _identity(run.scenario) == identity


def _identity(scenario: Record) -> str:
    return dumps({key: scenario[key] for key in sorted(scenario) if key not in NO_RESULT})


def _record(scenario: Scenario) -> Record:
    return scenario.model_dump(mode="json", exclude_unset=True)
