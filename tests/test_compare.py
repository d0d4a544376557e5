"""Comparisons: numbers a person can check."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedsim import compare, differences
from fedsim.dashboards import page
from fedsim.results import Run, RunFolder
from tests.run_folders import make_full_run, make_run, scenario


@pytest.fixture
def seeds(tmp_path: Path) -> list[Run]:
    """Three seeds with final scores 0.2, 0.4 and 0.9."""
    finals = (0.2, 0.4, 0.9)
    return [make_run(tmp_path, (0.1, v), values={"seed": s}) for s, v in enumerate(finals)]


def printed(compared: compare.Table, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width)
    compare.print_table(compared, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_seeds_are_one_group_with_mean_and_sample_deviation(seeds: list[Run]) -> None:
    (group,) = compare.table(seeds).groups
    final = group.spreads["final"]
    assert (final.n, final.mean) == (3, pytest.approx(0.5))
    assert final.sd == pytest.approx(math.sqrt((0.09 + 0.01 + 0.16) / 2))
    assert group.spreads["up_bytes"] == compare.Spread(3, 1000.0, 0.0)
    assert "0.5 ± 0.36" in printed(compare.table(seeds))


def test_one_run_has_no_deviation(seeds: list[Run]) -> None:
    (group,) = compare.table(seeds[:1]).groups
    assert group.spreads["final"] == compare.Spread(1, 0.2, None)
    assert "±" not in printed(compare.table(seeds[:1]))


def test_groups_by_scenario_and_repeats(tmp_path: Path) -> None:
    values: list[dict[str, Any]] = [
        {"seed": 0},
        {"seed": 1},
        {"seed": 0},  # again
        {"seed": 1, "num_rounds": 5},
        {"seed": 2, "seeds": [1, 2]},
    ]
    runs = [make_run(tmp_path, values=v) for v in values]
    seeds_of = [[run.seed for run in members] for members in differences.group(runs)]
    assert seeds_of == [[0, 1, 2], [0], [1]]
    labels = differences.labels(differences.group(runs))
    assert labels == ["tiny #1", "tiny #2", "tiny #3"]


def test_runs_without_a_scenario_are_not_mixed(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, values={"seed": s}) for s in (0, 1)]
    for run in runs:
        (run.path / "resolved.yaml").unlink()
    assert len(differences.group([Run.open(run.path) for run in runs])) == 2


def test_only_differing_options_get_columns(tmp_path: Path) -> None:
    momentum = {"name": "fedavgm", "server_momentum": 0.5}
    runs = [make_run(tmp_path), make_run(tmp_path, values={"strategy": momentum, "seed": 4})]
    compared = compare.table(runs)
    assert compared.options == ("strategy.server_momentum",)
    assert [row.options["strategy.server_momentum"] for row in compared.rows] == [
        "(default)",
        "0.5",
    ]
    text = printed(compared)
    assert "server_momentum" in text
    assert "num_rounds" not in text
    assert "All runs: codec none; rounds 2; failed clients 0; status done" in text


def test_labels_say_what_differs_while_that_is_short(tmp_path: Path) -> None:
    values: list[dict[str, Any]] = [
        {"name": "a"},
        {"name": "b", "num_rounds": 3},
        {"name": "b", "num_rounds": 4},
    ]
    runs = [make_run(tmp_path, values=v) for v in values]
    labels = differences.labels(differences.group(runs))
    assert labels == ["a", "b (num_rounds=3)", "b (num_rounds=4)"]
    long = make_run(tmp_path, values={"name": "b", "data": {"path": "x" * 50}})
    labels = differences.labels(differences.group([*runs, long]))
    assert labels == ["a", "b #1", "b #2", "b #3"]


def test_many_differing_options_get_a_table_of_their_own(tmp_path: Path) -> None:
    engine = {"backend": "inline", "workers": 2, "threads_per_worker": 3, "address": "auto"}
    other = {"engine": engine, "client": {"name": "sgd", "momentum": 0.5, "modules": ["q", "v"]}}
    runs = [make_run(tmp_path), make_run(tmp_path, values=other)]
    compared = compare.table(runs)
    assert compare.has_option_table(compared)
    text = printed(compared)
    assert "options that differ" in text
    assert "threads_per_worker=3" in text
    assert "modules=[q, v]" in text
    assert "workers" not in compare.layout(compared)[0]
    html = page.page(runs)
    assert "Options that differ" in html
    assert "[q, v]" in html


def test_what_most_runs_share_is_said_once(tmp_path: Path) -> None:
    engine = {"backend": "inline", "workers": 2, "threads_per_worker": 3, "address": "auto"}
    data = {"path": "sklearn:digits", "test_fraction": 0.5}
    runs = [
        make_run(tmp_path, values={"name": n, "engine": engine, "data": data}) for n in ("a", "b")
    ]
    compared = compare.table([*runs, make_run(tmp_path, values={"name": "c"})])
    assert compare.has_option_table(compared)
    _, lines, caption = compare.option_list(compared)
    assert [line[1][0] for line in lines][:2] == ["", ""]
    assert "test_fraction=(default)" in lines[2][1][0]
    assert caption.startswith("Most runs: ")
    assert "test_fraction=0.5" in caption


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_tables_fit_the_terminal_and_say_what_they_leave_out(tmp_path: Path, width: int) -> None:
    names = ["a-name-of-some-length", "another-name"]
    strategy = {"name": "fedavgm", "server_momentum": 0.5}
    runs = [make_run(tmp_path, values={"name": n, "seed": s}) for n in names for s in (0, 1)]
    runs.append(make_run(tmp_path, values={"name": "third", "strategy": strategy}))
    console = Console(width=width, file=io.StringIO(), record=True)
    compare.print_table(compare.table(runs), console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    for cell in ("0.5 (round 1)", "another-name", "server_momentum"):  # whole, on one line
        assert cell in text
    everything = ["memory", "energy", "status", "wall time"]
    flat = " ".join(text.split())
    missing = flat.partition("No room for: ")[2].partition("(")[0]
    if width == 200:
        assert not missing
        assert all(name in flat for name in everything)
    if width <= 80:
        assert "memory" in missing
        assert "--json" in flat


def test_json_is_exact(tmp_path: Path) -> None:
    run = make_run(tmp_path, up=1_234_567, failed=1)
    record = json.loads(compare.to_json(compare.table([run])))
    (row,) = record["runs"]
    assert (row["up_bytes"], row["failed_clients"], row["best_round"]) == (2_469_134, 2, 1)
    assert "2.47 MB" in printed(compare.table([run]))
    assert record["groups"][0]["up_bytes"] == {"n": 1, "mean": 2_469_134.0, "sd": None}


def test_head_table_has_what_any_run_measured(tmp_path: Path) -> None:
    plain = make_run(tmp_path, values={"name": "plain"})
    full = make_full_run(tmp_path, name="full")
    table = compare.table([plain, full])
    headings, lines, _ = compare.layout(table)
    cells = [dict(zip(headings, line, strict=True)) for line in lines]
    assert cells[0]["virtual time"] == ("2 min 0 s", 120.0)
    assert cells[0]["energy"] == ("1 kJ", 1000.0)
    assert cells[0]["memory"] == ("102 B", 102)
    assert [line["epsilon"] for line in cells] == [("–", None), ("2", 2)]
    assert "epsilon" not in compare.layout(compare.table([plain]))[0]
    for text in ("2 min 0 s", "1 kJ", "102 B"):
        assert text in printed(table)


def test_csv_is_exact(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, up=1_234_567), make_run(tmp_path, values={"num_rounds": 9})]
    lines = list(csv.DictReader(io.StringIO(compare.to_csv(compare.table(runs)))))
    assert [line["up_bytes"] for line in lines] == ["2469134", "2000"]
    assert [line["num_rounds"] for line in lines] == ["2", "9"]
    assert (lines[0]["energy_j"], lines[0]["epsilon"]) == ("1000.0", "")
    assert compare.to_csv(compare.table([])) == "\n"


def test_numbers_of_the_page_are_exact_on_hover(tmp_path: Path) -> None:
    html = page.page([make_run(tmp_path, (0.1, 1 / 3), up=1_234_567)])
    assert 'title="1,234,567">1.23 MB<' in html
    assert 'title="0.3333333333333333">0.3333<' in html


def test_failed_and_running_runs_say_so(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path, values={"name": "bad"}, status="failed", reason="too many failed"),
        make_run(tmp_path, values={"name": "[red]live"}, status="running"),
        Run.open(RunFolder.create(tmp_path, scenario(name="new"), None).path),
    ]
    text = printed(compare.table(runs))
    assert "bad, seed 0: too many failed" in text
    assert "[red]live" in text
    assert "best eval/accuracy" in text  # the new run, not evaluated, does not blur the heading


def test_mixed_metrics_are_named_in_the_cells(tmp_path: Path) -> None:
    other = RunFolder.create(tmp_path, scenario(name="lm"), None)
    other.add_round({"round": 0, "eval/perplexity": 9.0})
    text = printed(compare.table([make_run(tmp_path), Run.open(other.path)]))
    assert "best score" in text
    assert "9 (round 0) eval/perplexity" in text
