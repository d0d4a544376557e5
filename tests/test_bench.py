"""The benchmark's harness works; it measures nothing here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import checks, codecs
from tests.bench.works import WORKS

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_quick_run_writes_results_and_a_table(tmp_path):
    arguments = ["--quick", "--only", "nothing", "--peers", "bare,fedsim", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "tests.bench", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "nothing.json").read_text())
    assert set(record["peers"]) == {"bare", "fedsim"}
    assert record["machine"]["cores"] >= 1
    for peer in record["peers"].values():
        assert peer["failed"] == []
        assert peer["seconds_per_round"] > 0
        assert peer["ratio_to_bare"] > 0
    page = (tmp_path / "README.md").read_text()
    assert "| clients that do nothing |" in page
    assert page in done.stdout


def test_peers_that_did_other_arithmetic_are_named():
    work = WORKS["logistic"]
    good = {"steps": work.steps, "num_trainable": 7850, "losses": [2.3, 1.0]}
    assert checks.differences(work, {"a": good, "b": {**good, "losses": [2.3, 1.1]}}) == []
    assert "b took" in checks.differences(work, {"a": good, "b": {**good, "steps": 1}})[0]
    assert "weights" in checks.differences(work, {"a": good, "b": {**good, "num_trainable": 1}})[0]
    assert "losses" in checks.differences(work, {"a": good, "b": {**good, "losses": [2.0]}})[0]


def test_codecs_are_measured():
    sections = codecs.CASES["topk 1 %"]
    results = {"topk 1 %": codecs.measure(sections, 10_000, 1)}
    results["ANS, ternary"] = codecs.measure_ans(10_000, 1)
    assert all(value > 0 for r in results.values() for value in r.values())
    assert 70 < results["topk 1 %"]["ratio"] < 90
    assert "| topk 1 % |" in codecs.table(results)
