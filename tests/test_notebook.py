"""Runs as tables and figures in a notebook, and as Parquet."""

import json
import math
import sys
from pathlib import Path

import pandas as pd
import pytest

import fedsim
from fedsim import load_runs
from fedsim.dashboards.panel import NothingToShow
from fedsim.errors import OutputError
from fedsim.results import RunFolder
from tests.command import Command, real
from tests.run_folders import make_run


@pytest.fixture
def runs(tmp_path):
    make_run(tmp_path / "runs", (0.1, 0.5, 0.4), values={"tags": ["a", "b"]})
    make_run(tmp_path / "runs", (0.2, math.nan), values={"name": "other", "seed": 4})
    return load_runs(tmp_path / "runs")


def test_frame_has_a_row_per_run_and_round(runs):
    frame = runs.frame()
    assert list(frame.columns[:6]) == ["run", "name", "strategy", "codec", "seed", "round"]
    assert frame[["name", "seed", "round"]].to_numpy().tolist() == [
        ["tiny", 0, 0], ["tiny", 0, 1], ["tiny", 0, 2], ["other", 4, 0], ["other", 4, 1],
    ]  # fmt: skip
    scores = frame["eval/accuracy"].tolist()
    assert scores[:4] == [0.1, 0.5, 0.4, 0.2]
    assert math.isnan(scores[4])
    assert frame["comm/up_bytes"].sum() == 3000


def test_clients_has_a_row_per_run_round_and_client(runs):
    frame = runs.clients()
    assert len(frame) == 3 * (2 + 1)
    assert frame[frame["name"] == "other"]["train_loss"].tolist() == [0.5, 1.0, 1.5]


def test_summary_has_scores_totals_and_tags(runs):
    frame = runs.summary().set_index("name")
    assert frame.loc["tiny", ["best", "best_round", "final"]].tolist() == [0.5, 1, 0.4]
    assert frame.loc["tiny", "comm/up_bytes"] == 2000
    assert frame.loc["tiny", "tags"] == "a, b"
    assert json.loads(frame.loc["other", "scenario"])["seed"] == 4


def test_runs_are_a_sequence_that_a_notebook_can_show(runs):
    assert [run.name for run in runs] == ["tiny", "other"]
    assert [run.name for run in runs[1:]] == ["other"]
    assert repr(runs) == "<2 runs: tiny, other>"
    assert repr(runs[:1]) == "<1 run: tiny>"
    assert "<td>other</td>" in runs._repr_html_()
    nasty = RunFolder(runs[0].path)
    text = (nasty.path / "summary.json").read_text().replace('"tiny"', '"<b>x"')
    (nasty.path / "summary.json").write_text(text)
    assert "&lt;b&gt;x" in load_runs(nasty.path)._repr_html_()


def test_plot_draws_a_panel_by_its_file_name(runs):
    (first, second) = runs.plot("score").data
    assert list(first.y) == [0.1, 0.5, 0.4]
    assert second.name == "other"
    with pytest.raises(OutputError, match=r"no panel 'scores'\. Did you mean 'score'\? Panels: "):
        runs.plot("scores")
    with pytest.raises(OutputError, match="unknown option 'colour' of panel 'communication'"):
        runs.plot("communication", colour="red")


def test_plot_says_why_there_is_nothing(tmp_path):
    from tests.run_folders import scenario

    empty = RunFolder.create(tmp_path, scenario(), None)
    with pytest.raises(NothingToShow, match="No run has been evaluated"):
        load_runs(empty.path).plot("score")
    assert load_runs(empty.path).frame().columns.tolist()[:2] == ["run", "name"]


def test_import_fedsim_is_light_and_load_runs_appears_when_asked_for(tmp_path):
    code = (
        "import sys, fedsim; a = set(sys.modules); fedsim.load_runs; "
        "print(len([m for m in a if m.startswith('fedsim')]), "
        "[m for m in ('torch', 'ray', 'flwr', 'transformers') if m in sys.modules])"
    )
    assert real(tmp_path, sys.executable, "-c", code).stdout.strip() == "2 []"
    with pytest.raises(AttributeError, match="no attribute 'load_run'"):
        fedsim.load_run  # noqa: B018


# ---- export


@pytest.fixture
def command(tmp_path, monkeypatch, capfd):
    return Command(tmp_path, monkeypatch, capfd)


def test_export_to_parquet_holds_everything(runs, command):
    out = command.prints("export", "runs", "--to", "parquet", "--out", "tables")
    assert out.split() == [f"tables/{n}.parquet" for n in ("rounds", "clients", "summary")]
    pd.testing.assert_frame_equal(pd.read_parquet("tables/rounds.parquet"), runs.frame())
    clients = pd.read_parquet("tables/clients.parquet")
    assert clients["train_loss"].tolist() == runs.clients()["train_loss"].tolist()
    assert pd.read_parquet("tables/summary.parquet")["best"].tolist() == [0.5, 0.2]
    assert len(list(Path("tables").iterdir())) == 3


def test_lists_and_mixed_values_become_text(tmp_path, command):
    folder = RunFolder.create(tmp_path, make_scenario(), None)
    folder.add_round({"round": 0, "sizes": [1, 2], "mixed": "text"})
    folder.add_round({"round": 1, "sizes": {"a": 1}, "mixed": 3})
    command.prints("export", str(folder.path), "--to", "parquet")
    frame = pd.read_parquet("tables/rounds.parquet")
    assert frame["sizes"].tolist() == ["[1, 2]", '{"a": 1}']
    assert frame["mixed"].tolist() == ["text", "3"]


def make_scenario():
    from tests.run_folders import scenario

    return scenario()


def test_export_to_a_tracker_with_options(runs, command):
    out = command.prints("export", "runs", "--to", "tensorboard", "--out", "board")
    assert out.splitlines()[0] == f"{runs[0].path}: 3 rounds to tensorboard"
    assert len(list(Path("board").glob("*/events.out.*"))) == 2
    target = "{name: tests.test_trackers:Notes}"
    assert "3 rounds to tests.test_trackers:Notes" in command.prints(
        "export", "runs", "--to", target
    )


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("parket", "there is no target called 'parket'. Did you mean 'parquet'? Targets: parquet,"),
        ("{name: parquet, rows: 3}", "parquet has no option 'rows'. Options: folder."),
        ("{project: x}", "--to {project: x}: is no name, nor a mapping with one"),
        ("[", "--to [: is no name"),
        ("{name: wandb, modus: x}", "unknown option 'modus' of tracker 'wandb'"),
    ],
)
def test_export_refuses(runs, command, target, message):
    assert message in command.refuses("export", "runs", "--to", target)


def test_a_tracker_that_fails_ends_an_export(runs, command):
    code, _, err = command("export", "runs", "--to", "tests.test_trackers:Broken")
    assert code == 3
    assert "tests.test_trackers:Broken refused the run: ConnectionError: the server is gone" in err
