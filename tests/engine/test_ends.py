"""Runs that end early: whatever the moment, the run folder says how, and can be resumed."""

import os
import signal
from pathlib import Path

import pytest

from fedsim import simulation
from fedsim.engine.grid import WorkerGrid
from fedsim.errors import DataError, OutputError
from fedsim.progress import Reporter
from fedsim.results import Run
from tests.engine.runs import outcome, six_rounds
from tests.problems import tiny


def test_an_error_in_the_scenario_s_devices_leaves_no_folder(tmp_path):
    process = {"name": "bernoulli", "label_alpha": 0.5, "label_column": "nope"}
    devices = {"mix": [{"profile": "phone-mid", "share": 1.0}], "availability": process}
    with pytest.raises(DataError, match="nope"):
        simulation.run(tiny(devices=devices), out=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture(autouse=True)
def _hears_ctrl_c():
    """A shell that runs the tests in the background has them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupted(out: Path, reporter: Reporter | None = None) -> Path:
    """The folder of a run that Ctrl-C ends."""
    with pytest.raises(KeyboardInterrupt):
        simulation.run(six_rounds(), out=out, reporter=reporter)
    (folder,) = out.glob("tiny/*")
    run = Run.open(folder)
    assert (run.status, run.summary["exit_code"]) == ("interrupted", 3)
    return folder


class Impatient(Reporter):
    """Presses Ctrl-C when the run starts."""

    def start(self, title, num_rounds):
        signal.raise_signal(signal.SIGINT)


def test_ctrl_c_while_the_run_starts(tmp_path):
    folder = interrupted(tmp_path, Impatient())
    with pytest.raises(OutputError, match="no checkpoint"):
        simulation.resume(folder)
    assert Run.open(folder).status == "interrupted"


def test_ctrl_c_during_a_test_of_the_model_ends_the_run_after_its_round(tmp_path, monkeypatch):
    whole = simulation.run(six_rounds(), out=tmp_path / "whole")
    test, tests = WorkerGrid.test, []

    def pressing(grid, arrays):
        tests.append(len(tests))
        if tests[-1] == 3:
            signal.raise_signal(signal.SIGINT)
        return test(grid, arrays)

    with monkeypatch.context() as patch:
        patch.setattr(WorkerGrid, "test", pressing)
        folder = interrupted(tmp_path / "runs")
    resumed = simulation.resume(folder)
    assert "resumed after round 3" in "\n".join(resumed.events)
    assert outcome(resumed) == outcome(whole)


@pytest.mark.parametrize(("presses", "saved"), [(1, 5), (2, 3)])
def test_ctrl_c_while_a_checkpoint_is_written(tmp_path, monkeypatch, presses, saved):
    """Once, it waits for the next round; twice, it leaves half a file, which nobody reads."""
    whole = simulation.run(six_rounds(), out=tmp_path / "whole")

    def pressing(number):
        if "round-000004" in os.readlink(f"/proc/self/fd/{number}"):
            for _ in range(presses):
                signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", pressing)
        folder = interrupted(tmp_path / "runs")
    resumed = simulation.resume(folder)
    assert f"resumed after round {saved}" in "\n".join(resumed.events)
    assert outcome(resumed) == outcome(whole)
    assert not list(folder.rglob("*.tmp"))
