"""The report of run folders that are cut off, damaged or of another version: told, not hidden."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from plotly.offline import get_plotlyjs

from fedsim import compare
from fedsim.dashboards import page
from fedsim.errors import OutputError
from fedsim.results import Run, find_runs
from tests.run_folders import make_full_run

NEWER = {
    "schema_version": 2,
    "name": 3,
    "seed": "one",
    "key_metric": "eval/accuracy",
    "totals": {"comm/up_bytes": "many", "comm/down_bytes": 7},
}
ODD_ROUNDS = """{"round": true}
{"round": 3, "eval/accuracy": "high", "comm/up_bytes": [1], "time/virtual_s": true, "agg/x": {}}
{"round": 4, "eval/accuracy": NaN, "comm/up_bytes": 1e999, "clients/completed": "all"}
{"round": 5, "eval/acc"""
ODD_CLIENTS = """{"round": -5, "client": -3, "device": "x", "time/virtual_s": -1}
{"round": 2, "client": 99999999999999}
{"round": 2, "client": 1, "status": 3, "device": {"a": 1}, "train_loss": "NaN"}
{"round": 3, "cl"""
ODD_STEPS = """{"round": 1e99, "step": 1}
{"round": -1, "step": 1, "loss": 3}
{"round": 2, "step": 99999999999999999999999, "loss": 3}
{"round": 2, "step": 1, "loss": "high", "scalar": [1]}
{"round": 2, "st"""
DAMAGE: dict[str, tuple[str, str | bytes | None, str]] = {
    "no status": ("STATUS", None, "STATUS cannot be read"),
    "no scenario": ("resolved.yaml", None, "resolved.yaml cannot be read"),
    "no rounds": ("rounds.jsonl", None, "rounds.jsonl is missing"),
    "no environment": ("env.json", None, "env.json cannot be read"),
    "no events": ("events.log", None, "events.log cannot be read"),
    "no clients": ("clients.jsonl", None, "clients.jsonl is missing"),
    "newer": ("summary.json", json.dumps(NEWER), "schema version 2"),
    "odd name": ("summary.json", json.dumps(NEWER), "'name' is not what fedsim writes there"),
    "odd environment": ("env.json", '{"run": [1]}', "env.json: 'run' is not what"),
    "odd metric": ("env.json", '{"run": {"key_metric": "f1"}}', "'key_metric' is not what"),
    "odd rounds": ("rounds.jsonl", ODD_ROUNDS, "rounds.jsonl:4 is not a record"),
    "odd clients": ("clients.jsonl", ODD_CLIENTS, "clients.jsonl: 1 line is no record"),
    "odd steps": ("steps.jsonl", ODD_STEPS, "steps.jsonl:5 is not a record"),
    "binary rounds": ("rounds.jsonl", b"\xff\xfe\x00" * 99, "rounds.jsonl:1 is not a record"),
    "binary clients": ("clients.jsonl", b"\x00\xff" * 99, "clients.jsonl: 1 line is no record"),
}


def own_text(runs: list[Run]) -> str:
    return page.page(runs).replace(get_plotlyjs(), "")


@pytest.mark.slow_variants
@pytest.mark.parametrize(("name", "content", "said"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_told_on_the_page(
    tmp_path: Path, name: str, content: str | bytes | None, said: str
) -> None:
    run = make_full_run(tmp_path)
    path = run.path / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    run = Run.open(run.path)
    text = own_text([run])
    assert said.replace("'", "&#x27;") in text
    assert json.loads(compare.to_json(compare.table([run])))["runs"][0]["path"] == str(run.path)


def test_sound_parts_of_a_newer_summary_are_used(tmp_path: Path) -> None:
    run = make_full_run(tmp_path)
    (run.path / "summary.json").write_text(json.dumps(NEWER))
    row = compare.table([Run.open(run.path)]).rows[0]
    assert (row.name, row.seed, row.metric) == ("tiny", 0, "eval/accuracy")  # from env.json
    assert (row.up_bytes, row.down_bytes) == (None, 7)


def test_a_run_in_progress_says_so_and_grows(tmp_path: Path) -> None:
    run = make_full_run(tmp_path)  # without a summary
    assert ">running<" in own_text([run])
    assert "status running" in own_text([run, make_full_run(tmp_path, seed=1)])
    with (run.path / "rounds.jsonl").open("a") as file:
        file.write('{"round": 3, "eval/accuracy": 0.7}\n')
    assert compare.table([Run.open(run.path)]).rows[0].best == 0.7


def test_an_empty_folder_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no run folder"):
        find_runs([tmp_path])


def test_numbers_that_are_none_are_gaps_in_all_panels(tmp_path: Path) -> None:
    run = make_full_run(tmp_path)
    with (run.path / "rounds.jsonl").open("a") as file:
        file.write(ODD_ROUNDS)
    odd: Any = Run.open(run.path)
    for panel in page.panels():
        assert "high" not in panel.draw([odd]).to_json()
