"""What the commands ``run``, ``resume``, ``sweep``, ``validate`` and ``plan`` do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from fedsim import compare, layers
from fedsim import sweep as sweeping
from fedsim.errors import DataError, FedsimError, RunError
from fedsim.loading import loading
from fedsim.progress import Reporter
from fedsim.results import Run
from fedsim.scenario import Scenario, engine_and_model, load

if TYPE_CHECKING:
    from fedsim.engine.launch import Launch

TRIED_ROWS = 8
"""``validate`` tests the untrained model on about this many rows, to see that they fit."""
READ_ROWS = 10_000
"""So many training rows it also encodes, to look at their values."""


def run(
    name: str,
    overrides: Sequence[str],
    out: Path,
    make_reporter: Callable[[int], Reporter],
    json: bool,
) -> list[Run]:
    """Run a scenario, once per seed; end with a table and a report page.

    Args:
        name: A YAML file or a shipped scenario.
        overrides: Changes to it.
        out: Parent of run folders.
        make_reporter: Called with a run's seed for each run.
        json: Print the table as one line of JSON.
    """
    with _launched(name, overrides) as launch:
        scenario = _load(name, [*overrides, "sweep="])
        runs = _run_seeds(scenario, layers.find_scenario(name), out, make_reporter, launch)
    _tell(runs, json)
    return runs


def _run_seeds(
    scenario: Scenario,
    source: Path,
    out: Path,
    make_reporter: Callable[[int], Reporter],
    launch: Launch | None,
) -> list[Run]:
    with loading():
        from fedsim import simulation

    seeds = scenario.seeds or (scenario.seed,)
    runs = []
    with _located(scenario):
        for i, seed in enumerate(seeds, start=1):
            reporter = make_reporter(seed)
            if len(seeds) > 1:
                reporter.message(f"seed {seed} ({i} of {len(seeds)})")
            one = scenario.model_copy(update={"seed": seed, "seeds": ()})
            run = simulation.run(one, out=out, source=source, reporter=reporter, launch=launch)
            runs.append(run)
    return runs


def resume(path: Path, make_reporter: Callable[[int], Reporter], json: bool) -> Run:
    """Continue a run from its last checkpoint; ends as ``run`` does."""
    found = Run.open(path)
    source = found.env.get("source")
    if source:
        _import_beside(Path(source))
    with loading():
        from fedsim import simulation

    run = simulation.resume(path, reporter=make_reporter(found.seed))
    _tell([run], json)
    return run


def sweep(
    name: str,
    overrides: Sequence[str],
    out: Path,
    make_reporter: Callable[[int], Reporter],
    json: bool,
) -> None:
    """Run all trials of a scenario's sweep that are not finished; ends with one table and page.

    Raises:
        RunError: A trial failed; the others are done.
    """
    file = layers.find_scenario(name)
    _import_beside(file)
    with Console(stderr=True).status("reading the scenario"):
        trials = sweeping.plan(file, overrides)
    played = sweeping.play(trials, out, file, make_reporter)
    if played.runs:
        _tell(played.runs, json, sweeping.folder(trials, out) / "report.html")
    if played.failures:
        raise RunError(
            f"{len(played.failures)} of {len(trials)} trials failed; the first: "
            f"{played.failures[0]}",
            hint="The same command tries them again and repeats no other",
        )


def _tell(runs: list[Run], json: bool, page: Path | None = None) -> None:
    """Write the report page and print the table."""
    from fedsim.dashboards.page import write_page

    first = runs[0].path
    of_seeds = first.with_name(f"{first.name}-seeds.html")
    page = page or (first / "report.html" if len(runs) == 1 else of_seeds)
    write_page(runs, page)
    table = compare.table(runs)
    if json:
        print(compare.to_json(table, indent=None))
    else:
        compare.print_table(table)
        print(f"report: {page}")


def validate(name: str, overrides: Sequence[str]) -> None:
    """Check everything that can be checked without training."""
    scenario = _load(name, overrides)
    from fedsim import plan as planning
    from fedsim.assembly import build_strategy, describe
    from fedsim.data import partition
    from fedsim.engine.inline import InlineGrid
    from fedsim.engine.worker import Recipe
    from fedsim.models import warm_start
    from fedsim.records import identity

    with _located(scenario):
        _check_files(scenario)
        split = partition.make(scenario, scenario.seed)
        if scenario.model.warm_start:
            warm_start.optimizer_class(scenario.model.warm_start)
        cold = scenario.model.model_copy(update={"warm_start": None})
        recipe = Recipe(scenario.model_copy(update={"model": cold}), split.ownership, scenario.seed)
        with InlineGrid(recipe) as grid:
            num_rows = len(split.ownership.test)
            grid.worker.test(grid.facts["arrays"], 0, -(-num_rows // TRIED_ROWS))
            rows = split.rows.train
            grid.worker.task.objective.encode(rows.select(range(min(len(rows), READ_ROWS))))
            strategy = build_strategy(scenario, grid.num_clients)
            if scenario.devices:
                planning.check(grid, planning.world_of(recipe, grid))
            cohort = scenario.cohort_size(grid.num_clients)
            print(f"{scenario.name}: ok")
            print(f"  {describe(grid)}")
            print(f"  {cohort} clients a round, {scenario.num_rounds} rounds")
            print(f"  {type(strategy).__name__}, client {scenario.client.name}")
            print(f"  codec {identity(scenario)['codec']}")
            print(f"  {num_rows:,} rows in the global test set")


def plan(name: str, overrides: Sequence[str], json: bool) -> None:
    """Predict what a scenario costs."""
    scenario = _load(name, overrides)
    from fedsim import plan as planning
    from fedsim.records import dumps

    with _located(scenario):
        _check_files(scenario)
        made = planning.make(scenario)
    if json:
        print(dumps(made.record()))
    else:
        planning.print_plan(made)


def _check_files(scenario: Scenario) -> None:
    from fedsim.data import sources

    if missing := sources.missing_files(scenario.data):
        raise DataError(
            f"files that you bring are missing: {', '.join(missing)}",
            key=("data", "data_files" if scenario.data.data_files else "data_dir"),
            hint=scenario.data.how_to_get
            or "A relative path is looked for beside the scenario, then in the current folder",
        )


@loading()
def _launched(name: str, overrides: Sequence[str]) -> AbstractContextManager[Launch | None]:
    """Worker processes that start while the scenario's plug-ins load; none for inline."""
    sections = engine_and_model(name, overrides)
    if sections is None:
        return nullcontext()
    _import_beside(layers.find_scenario(name))
    from fedsim.engine.launch import launching

    return launching(*sections)


def _import_beside(file: Path) -> None:
    """Let ``module:Class`` be found beside the scenario."""
    folder = str(file.parent.absolute())
    if folder not in sys.path:
        sys.path.insert(0, folder)


@loading()
def _load(name: str, overrides: Sequence[str]) -> Scenario:
    file = layers.find_scenario(name)
    _import_beside(file)
    with Console(stderr=True).status("reading the scenario"):
        return load(file, overrides)


@contextmanager
def _located(scenario: Scenario) -> Iterator[None]:
    """Add file and line to errors that name a key of the scenario."""
    try:
        yield
    except FedsimError as error:
        raise error.at(scenario.where(error.key)) from error.__cause__
