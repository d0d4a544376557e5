"""What the commands ``run`` and ``validate`` do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from fedsim import compare, layers
from fedsim.errors import DataError, FedsimError
from fedsim.progress import Reporter
from fedsim.results import Run
from fedsim.scenario import Scenario, load


def run(
    name: str,
    overrides: Sequence[str],
    out: Path,
    make_reporter: Callable[[], Reporter],
    json: bool,
) -> list[Run]:
    """Run a scenario, once per seed; end with a table and a report page."""
    scenario = _load(name, overrides)
    from fedsim import simulation
    from fedsim.dashboards.page import write_page

    seeds = scenario.seeds or (scenario.seed,)
    runs = []
    with _located(scenario):
        for i, seed in enumerate(seeds, start=1):
            reporter = make_reporter()
            if len(seeds) > 1:
                reporter.message(f"seed {seed} ({i} of {len(seeds)})")
            one = scenario.model_copy(update={"seed": seed, "seeds": ()})
            source = layers.find_scenario(name)
            runs.append(simulation.run(one, out=out, source=source, reporter=reporter))
    first = runs[0].path
    page = first / "report.html" if len(runs) == 1 else first.with_name(f"{first.name}-seeds.html")
    write_page(runs, page)
    table = compare.table(runs)
    if json:
        print(compare.to_json(table))
    else:
        compare.print_table(table)
        print(f"report: {page}")
    return runs


def validate(name: str, overrides: Sequence[str]) -> None:
    """Check everything that can be checked without training."""
    scenario = _load(name, overrides)
    from fedsim.data import partition, sources
    from fedsim.engine.inline import InlineGrid
    from fedsim.engine.worker import Recipe
    from fedsim.simulation import build_strategy, describe

    with _located(scenario):
        missing = sources.missing_files(scenario.data)
        if missing:
            raise DataError(
                f"files that you bring are missing: {', '.join(missing)}",
                key=("data", "data_files"),
                hint=scenario.data.how_to_get,
            )
        split = partition.make(scenario, scenario.seed)
        cold = scenario.model.model_copy(update={"warm_start": None})
        recipe = Recipe(scenario.model_copy(update={"model": cold}), split.ownership, scenario.seed)
        with InlineGrid(recipe) as grid:
            strategy = build_strategy(scenario, grid.num_clients)
            cohort = scenario.cohort_size(grid.num_clients)
            print(f"{scenario.name}: ok")
            print(f"  {describe(grid)}")
            print(f"  {cohort} clients a round, {scenario.num_rounds} rounds")
            print(f"  {type(strategy).__name__}, client {scenario.client.name}")
            print(f"  {len(split.ownership.test):,} rows in the global test set")


def _load(name: str, overrides: Sequence[str]) -> Scenario:
    import sys

    file = layers.find_scenario(name)
    sys.path.insert(0, str(file.parent.absolute()))  # module:Class beside the scenario
    with Console(stderr=True).status("reading the scenario"):
        return load(file, overrides)


@contextmanager
def _located(scenario: Scenario) -> Iterator[None]:
    """Add file and line to errors that name a key of the scenario."""
    try:
        yield
    except FedsimError as error:
        raise error.at(scenario.where(error.key)) from error.__cause__
