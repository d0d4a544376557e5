"""The finished runs that ship with the tests: whole, of this version, and of no machine."""

import re
from pathlib import Path

import pytest

from fedsim.dashboards import page
from fedsim.dashboards.panel import NothingToShow
from fedsim.results import Run, find_runs
from fedsim.scenario import load
from tests.make_examples import FOLDER, METHODS

RUNS = find_runs([FOLDER])
FILES = [path for path in FOLDER.rglob("*") if path.is_file()]


def test_there_is_every_method_and_a_second_seed():
    names = sorted((run.name, run.seed) for run in RUNS)
    wanted = [(f"example-{name}", 0) for name in METHODS] + [("example-fedavg", 1)]
    assert names == sorted(wanted)
    assert len(METHODS) >= 4


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run.name}-{run.seed}")
def test_each_is_whole_and_is_what_the_quickstart_would_be_now(run: Run):
    assert (run.status, run.problems) == ("done", [])
    method = METHODS[run.name.removeprefix("example-")]
    overrides = [o for o in method if not o.startswith("seeds")]
    named = [f"name={run.name}", "tags=[example]", f"seed={run.seed}", *overrides]
    scenario = load("quickstart", named).model_copy(update={"seeds": ()})
    recorded = load(run.path / "resolved.yaml").model_copy(update={"seeds": ()})
    assert recorded.model_dump() == scenario.model_dump()
    assert run.overview["final_round"] == scenario.num_rounds
    rounds = [row["round"] for row in run.clients if row.get("stage") == "train"]
    assert len(rounds) == scenario.num_rounds * (scenario.clients_per_round or 0)


def test_they_are_small_and_name_no_machine():
    assert sum(path.stat().st_size for path in FILES) < 1_000_000
    text = "".join(path.read_text(encoding="utf-8") for path in FILES)
    assert not re.search(r"/(home|root|work|tmp|Users)/|hostname|\"platform\"|\"git\"", text)
    assert str(Path.home()) not in text


def test_their_report_has_figures(tmp_path):
    figures = 0
    for panel in page.panels():
        try:
            panel.draw(RUNS)
            figures += 1
        except NothingToShow:
            continue
    assert figures >= 5
