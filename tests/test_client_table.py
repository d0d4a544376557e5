"""Lines of clients.jsonl as a table: what is sound is there, what is not is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedsim import client_table
from fedsim.client_table import ClientTable
from fedsim.results import Run, RunFolder
from tests.run_folders import make_run, scenario


def test_lines_are_rows(tmp_path: Path) -> None:
    run = make_run(tmp_path, losses=(0.5, 1.5))
    sql = "SELECT round, client, train_loss, device FROM clients ORDER BY round, client"
    assert ClientTable.of(run).query(sql) == [
        (1, 0, 0.5, None),
        (1, 1, 1.5, None),
        (2, 0, 0.5, None),
        (2, 1, 1.5, None),
    ]
    assert run.problems == []


def test_a_file_is_read_once_per_run(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    table = ClientTable.of(run)
    (run.path / "clients.jsonl").unlink()
    assert ClientTable.of(run) is table
    assert ClientTable.of(Run.open(run.path)).rows.num_rows == 0


def test_score_is_the_key_metric_on_the_client(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, scenario(), None, key_metric=("eval/f1", "max"))
    folder.add_clients([{"round": 1, "client": 7, "stage": "evaluate", "f1": 0.5}])
    table = ClientTable.of(Run.open(folder.path))
    assert table.query("SELECT client, score FROM clients") == [(7, 0.5)]


def test_a_loss_may_be_the_score(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, scenario(), None, key_metric=("eval/train_loss", "min"))
    folder.add_clients([{"round": 1, "client": 7, "train_loss": 0.5}])
    table = ClientTable.of(Run.open(folder.path))
    assert table.query("SELECT score, train_loss FROM clients") == [(0.5, 0.5)]


def test_what_is_no_record_is_left_out_and_noted(tmp_path: Path) -> None:
    run = make_run(tmp_path, (0.1, 0.5), losses=(0.5,))
    with (run.path / "clients.jsonl").open("ab") as file:
        file.write(b'[1]\n{"round": 1, "status": "ok"}\n{"round": "x", "client": 1}\n')
        file.write(b'{"round": 1, "client": 1, "status": "\xff"}\n{"round": 2, "cli')
    assert ClientTable.of(run).query("SELECT round, client FROM clients") == [(1, 0)]
    (problem,) = run.problems
    assert problem.startswith("clients.jsonl: 5 lines are no records")


def test_missing_and_empty_files_have_no_rows(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run.path / "clients.jsonl").write_text("")
    assert ClientTable.of(run).query("SELECT count(*) FROM clients") == [(0,)]
    assert run.problems == []
    run = Run.open(run.path)
    (run.path / "clients.jsonl").unlink()
    assert ClientTable.of(run).query("SELECT score, device FROM clients") == []
    assert run.problems == ["clients.jsonl is missing"]


def test_names_of_folders_are_no_patterns(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, losses=losses) for name, losses in ODD.items()]
    counts = [ClientTable.of(run).rows.num_rows for run in runs]
    assert counts == [2, 4, 6]


@pytest.mark.parametrize("most_bytes", [1, 400, client_table.MOST_BYTES])
def test_files_that_are_read_together_are_each_of_their_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_bytes: int
) -> None:
    monkeypatch.setattr(client_table, "MOST_BYTES", most_bytes)
    runs = [make_run(tmp_path / name, losses=losses) for name, losses in ODD.items()]
    (runs[1].path / "clients.jsonl").unlink()
    with (runs[2].path / "clients.jsonl").open("a") as file:
        file.write('{"torn')
    judged = RunFolder.create(tmp_path, scenario(), None, key_metric=("eval/f1", "max"))
    judged.add_clients([{"round": 1, "client": 7, "f1": 0.5}])
    runs.insert(1, Run.open(judged.path))
    first = ClientTable.of(runs[0])
    tables = ClientTable.each(runs)
    assert tables[0] is first
    assert [table.rows.num_rows for table in tables] == [2, 1, 0, 6]
    assert tables[1].query("SELECT client, score FROM clients") == [(7, 0.5)]
    for run, table in zip(map(Run.open, (run.path for run in runs)), tables, strict=True):
        assert ClientTable.of(run).rows.equals(table.rows)
    assert [len(run.problems) for run in runs] == [0, 0, 1, 1]


ODD = {"a1": (1,), "a[1]": (1, 2), "a*'\"?": (1, 2, 3)}
