"""The run folder: what is written is read back, and damage is told, not hidden."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
from datetime import datetime, tzinfo
from pathlib import Path

import numpy as np
import pytest

from fedsim import compare, records
from fedsim.errors import OutputError
from fedsim.events import EventLog
from fedsim.records import identity, summarise
from fedsim.results import Run, RunFolder, find_runs, write_text
from tests.run_folders import make_run, round_records, scenario


def test_round_trip(tmp_path: Path) -> None:
    run = make_run(tmp_path, (0.1, 0.5, 0.4), values={"name": "a", "seed": 3})
    assert (run.name, run.seed, run.status, run.problems) == ("a", 3, "done", [])
    assert run.rounds == round_records((0.1, 0.5, 0.4))
    assert run.column("eval/accuracy") == ([0, 1, 2], [0.1, 0.5, 0.4])
    assert run.column("train/loss") == ([1, 2], [2.0, 1.0])
    assert [row["train_loss"] for row in run.clients] == [0.5, 1.0, 1.5] * 2
    assert run.scenario["seed"] == 3
    assert run.path.parent == tmp_path / "a"
    assert (run.path / "scenario.yaml").read_text() == (run.path / "resolved.yaml").read_text()


def test_summary_of_known_numbers(tmp_path: Path) -> None:
    summary = make_run(tmp_path, (0.1, 0.5, 0.4), failed=1).summary
    assert summary is not None
    assert summary["key_metric"] == {
        "name": "eval/accuracy",
        "mode": "max",
        "final": 0.4,
        "best": 0.5,
        "best_round": 1,
    }
    assert summary["totals"] == {
        "comm/up_bytes": 2000,
        "comm/up_header_bytes": 200,
        "comm/up_values_bytes": 1800,
        "comm/down_bytes": 4000,
        "time/wall_s": 3.0,
        "time/virtual_s": 120.0,
        "energy/joules": 1000.0,
        "clients/late": 2,
        "mem/peak_bytes": 102,
        "clients/selected": 8,
        "clients/completed": 6,
        "clients/failed": 2,
    }
    assert summary["final_round"] == 2
    assert summary["schema_version"] == records.SCHEMA_VERSION


def test_summary_of_a_metric_to_minimise_names_its_first_best_round() -> None:
    rounds = [{"round": n, "eval/loss": v} for n, v in enumerate([3.0, 1.0, 1.0, math.nan])]
    summary = summarise(identity(scenario()), rounds, key_metric=("eval/loss", "min"))
    assert summary["key_metric"]["best"] == 1.0
    assert summary["key_metric"]["best_round"] == 1
    assert summary["key_metric"]["final"] is None


def test_summary_takes_later_keys_and_no_rounds() -> None:
    rounds = [
        {"round": 0, "energy/joules": 1.0, "privacy/epsilon": 0.5, "odd": "text"},
        {"round": 1, "energy/joules": 2.0, "privacy/epsilon": 0.8, "comm/up_bytes_cum": 9},
    ]
    run = identity(scenario())
    totals = summarise(run, rounds, key_metric=("eval/accuracy", "max"))["totals"]
    assert totals == {"energy/joules": 3.0, "privacy/epsilon": 0.8}
    empty = summarise(run, [], key_metric=("eval/accuracy", "max"))
    assert (empty["final_round"], empty["totals"]) == (None, {})


def test_codec_label_names_both_directions() -> None:
    codec = {"up": [{"name": "topk"}, {"name": "int8"}], "down": "int8"}
    assert identity(scenario(codec=codec))["codec"] == "up topk+int8, down int8"
    codec = {"up": {"name": "topk", "error_feedback": {"name": "ef21"}}}
    assert identity(scenario(codec=codec))["codec"] == "up topk/ef21"
    assert identity(scenario())["codec"] == "none"


def test_source_is_copied_verbatim(tmp_path: Path) -> None:
    source = tmp_path / "mine.yaml"
    source.write_bytes(b"# why?\r\nname: x\n")
    folder = RunFolder.create(tmp_path / "runs", scenario(), source)
    assert (folder.path / "scenario.yaml").read_bytes() == source.read_bytes()


def test_same_scenario_at_the_same_time_gets_its_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StoppedClock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime(2026, 1, 2, 3, 4, 5, tzinfo=tz)

    monkeypatch.setattr("fedsim.results.datetime", StoppedClock)
    names = [RunFolder.create(tmp_path, scenario(), None).path.name for _ in range(3)]
    first = f"20260102-030405-{scenario().digest()}"
    assert names == [first, f"{first}-2", f"{first}-3"]


def test_name_cannot_leave_the_root(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "runs", scenario(name="../../up: /x"), None)
    assert folder.path.parent.parent == tmp_path / "runs"


def test_environment_says_versions_and_machine(tmp_path: Path) -> None:
    env = make_run(tmp_path).env
    assert env["versions"]["numpy"] == np.__version__
    assert env["cpus"] >= 1
    assert {"git", "platform", "memory_bytes", "command", "started"} <= env.keys()


def test_git_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert records.environment()["git"] is None
    for arguments in (
        ["init", "-q"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "x"],
    ):
        subprocess.run(["git", *arguments], check=True)
    assert records.environment()["git"]["dirty"] is False
    Path("new").touch()
    git = records.environment()["git"]
    assert git["dirty"] is True
    assert len(git["commit"]) == 40


def test_not_finite_is_null_and_noted_once(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, scenario(), None)
    folder.add_round({"round": 1, "train/loss": math.nan})
    folder.add_round({"round": 2, "train/loss": np.float32("inf"), "x": np.int64(3)})
    lines = (folder.path / "rounds.jsonl").read_text().splitlines()
    assert json.loads(lines[1]) == {"round": 2, "train/loss": None, "x": 3}
    run = Run.open(folder.path)
    rounds, values = run.column("train/loss")
    assert rounds == [1, 2]
    assert all(map(math.isnan, values))
    assert len(run.events) == 1
    assert "'train/loss' is nan in round 1" in run.events[0]


def test_events_are_one_line_each(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, scenario(), None)
    logger = logging.Logger("fedsim.test")
    logger.addHandler(EventLog(folder))
    logger.info("not this")
    logger.warning("first\n  second %d", 2)
    folder.event("ERROR", "odd \udcff byte")
    warning, error = Run.open(folder.path).events
    assert warning.endswith("Z WARNING fedsim.test: first | second 2")
    assert error.endswith("ERROR odd \\udcff byte")


def test_a_log_that_cannot_be_written_does_not_stop_the_caller(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder.create(tmp_path, scenario(), None)
    (folder.path / "events.log").unlink()
    (folder.path / "events.log").mkdir()
    logger = logging.Logger("fedsim.test")
    logger.addHandler(EventLog(folder))
    logger.warning("lost")
    assert "OutputError" in capsys.readouterr().err


def test_in_progress_is_readable(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, scenario(), None, key_metric=("eval/f1", "max"))
    run = Run.open(folder.path)
    assert (run.status, run.summary, run.rounds, run.problems) == ("running", None, [], [])
    assert run.key_metric == ("eval/f1", "max")
    folder.add_round({"round": 0, "eval/loss": 2.0, "eval/f1": 0.3})
    run = Run.open(folder.path)
    assert run.overview["key_metric"]["final"] == 0.3
    assert run.overview["strategy"] == "fedavg"


def test_key_metric_is_guessed_where_nothing_says_it(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, scenario(), None)
    folder.add_round({"round": 0, "eval/loss": 2.0, "eval/perplexity": 7.4})
    assert Run.open(folder.path).key_metric == ("eval/perplexity", "min")


def test_torn_last_line_is_left_out_and_noted(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with (run.path / "rounds.jsonl").open("a") as file:
        file.write('{"round": 3, "eval/acc')
    with (run.path / "clients.jsonl").open("a") as file:
        file.write('{"round": 3')
    run = Run.open(run.path)
    assert [r["round"] for r in run.rounds] == [0, 1, 2]
    assert "rounds.jsonl:4" in run.problems[0]
    assert "torn" in run.problems[0]
    assert len(list(run.clients)) == len(list(run.clients)) == 6
    assert [p for p in run.problems if p.startswith("clients.jsonl:7")] == run.problems[1:]


def test_whole_last_line_without_newline_counts(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with (run.path / "rounds.jsonl").open("a") as file:
        file.write('{"round": 3}')
    run = Run.open(run.path)
    assert len(run.rounds) == 4
    assert run.problems == []


def test_lines_that_are_no_rounds_are_noted(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run.path / "rounds.jsonl").write_text('[1]\n{"x": 1}\n{"round": 5}\n')
    run = Run.open(run.path)
    assert [r["round"] for r in run.rounds] == [5]
    assert len(run.problems) == 2


@pytest.mark.parametrize(
    "name", ["STATUS", "resolved.yaml", "rounds.jsonl", "summary.json", "env.json", "events.log"]
)
def test_missing_file_is_noted(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path)
    (run.path / name).unlink()
    run = Run.open(run.path)
    assert any(name in problem for problem in run.problems)
    row = compare.table([run]).rows[0]
    assert row.name == "tiny"
    assert row.best == (None if name == "rounds.jsonl" and not run.summary else 0.5)


def test_missing_clients_file_is_noted_when_read(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run.path / "clients.jsonl").unlink()
    assert list(run.clients) == []
    assert "clients.jsonl is missing" in run.problems


@pytest.mark.parametrize(
    ("name", "text"),
    [("summary.json", "{"), ("env.json", "[]"), ("resolved.yaml", "a: [1"), ("resolved.yaml", "3")],
)
def test_unreadable_file_is_noted(tmp_path: Path, name: str, text: str) -> None:
    run = make_run(tmp_path)
    (run.path / name).write_text(text)
    run = Run.open(run.path)
    assert [p for p in run.problems if p.startswith(name)] == run.problems != []
    assert run.overview["key_metric"]["best"] == 0.5


def test_newer_schema_is_noted(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    newer = {"schema_version": 2, "totals": {}, "else": 1}
    (run.path / "summary.json").write_text(json.dumps(newer))
    run = Run.open(run.path)
    assert "schema version 2" in run.problems[0]
    assert compare.table([run]).rows[0].name == "tiny"


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda path: None])
def test_not_a_run_folder(tmp_path: Path, make: object) -> None:
    path = tmp_path / "x"
    make(path)  # type: ignore[operator]
    with pytest.raises(OutputError, match="run folder") as caught:
        Run.open(path)
    assert str(path) in str(caught.value)
    with pytest.raises(OutputError, match="run folder"):
        find_runs([path])


def test_find_runs_by_folder_parent_and_glob(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, values={"name": name}) for name in ("b", "a", "c")]
    (tmp_path / "a" / "notes.txt").touch()

    def names(*paths: str | Path) -> list[str]:
        return [run.name for run in find_runs(paths)]

    assert names(tmp_path) == ["b", "a", "c"]  # by time
    assert names(runs[2].path, runs[0].path) == ["b", "c"]
    assert names(tmp_path, runs[0].path) == ["b", "a", "c"]  # no repeats
    assert names(tmp_path / "[ac]") == ["a", "c"]
    with pytest.raises(OutputError, match="no such run folder"):
        find_runs([tmp_path, tmp_path / "z*"])


def test_summary_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder.create(tmp_path, scenario(), None)
    folder.finish({"schema_version": 1, "n": 1}, "done")

    def full_disk(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(OutputError, match="No space left on device"):
        folder.finish({"schema_version": 1, "n": 2}, "done")
    assert Run.open(folder.path).summary == {"schema_version": 1, "n": 1}
    assert list(folder.path.glob(".*")) == []


def test_unwritable_root_says_what_to_try(tmp_path: Path) -> None:
    blocked = tmp_path / "runs"
    blocked.write_text("a file in place of the folder")
    with pytest.raises(OutputError, match="--out DIR") as caught:
        RunFolder.create(blocked, scenario(), None)
    assert str(blocked) in str(caught.value)
    assert caught.value.exit_code == 2


def test_folder_that_vanishes_during_the_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "gone")
    with pytest.raises(OutputError, match=r"gone.rounds\.jsonl: cannot be written"):
        folder.add_round({"round": 1})
    with pytest.raises(OutputError, match="cannot be written"):
        write_text(tmp_path / "gone" / "x", "text")


def test_imports_nothing_heavy() -> None:
    code = "import sys, fedsim.results, fedsim.compare; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "ray", "flwr", "plotly", "transformers", "datasets", "numpy", "pydantic"}
    assert heavy.isdisjoint(done.stdout.split())
