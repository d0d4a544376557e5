"""Full disks, unwritable folders, no memory: a clear error, and what was written stays whole."""

import errno
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fedsim import simulation
from fedsim.errors import RunError
from fedsim.progress import Reporter
from fedsim.results import Run
from tests.engine.runs import MISBEHAVE, outcome, six_rounds

RAY = {"backend": "ray", "workers": 2}


class Trouble(Reporter):
    """Calls a function when round 4 begins."""

    def __init__(self, out: Path, make) -> None:
        self.out, self.make = out, make

    def round_begins(self, server_round, num_clients):
        if server_round == 4:
            (self.folder,) = self.out.glob("tiny/*")
            self.make(self.folder)


def fill(name):
    """A disk without room: whatever is written to this file is refused."""

    def start(folder):
        (folder / name).rename(folder / f"{name}.kept")
        (folder / name).symlink_to("/dev/full")

    def end(folder):
        (folder / name).unlink()
        (folder / f"{name}.kept").rename(folder / name)

    return start, end, "No space left on device"


def take_away(name):
    """A folder that is gone: unmounted, say."""

    def start(folder):
        (folder / name).rename(folder.parent.parent.parent / "away")

    def end(folder):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder.parent.parent.parent / "away").rename(folder / name)

    return start, end, "cannot be written"


def put_in_the_way(name):
    """Something in the place of a file or folder that is to be written."""

    def start(folder):
        if (folder / name).exists():
            (folder / name).rename(folder / f"{name}.kept")
        (folder / name).mkdir() if "json" in name else (folder / name).write_text("")

    def end(folder):
        (folder / name).rmdir() if "json" in name else (folder / name).unlink()
        if (folder / f"{name}.kept").exists():
            (folder / f"{name}.kept").rename(folder / name)

    return start, end, "cannot be written"


TROUBLES = {
    "rounds are full": fill("rounds.jsonl"),
    "clients are full": fill("clients.jsonl"),
    "run folder is gone": take_away("."),
    "no checkpoints": put_in_the_way("checkpoints"),
    "no summary": put_in_the_way("summary.json"),
}


@pytest.mark.slow_variants
@pytest.mark.parametrize("name", TROUBLES)
def test_a_run_that_cannot_write_stops_and_is_resumed(tmp_path, name):
    start, end, words = TROUBLES[name]
    whole = simulation.run(six_rounds(), out=tmp_path / "whole")
    out = tmp_path / "runs"
    trouble = Trouble(out, start)
    with pytest.raises(RunError, match=words) as stop:
        simulation.run(six_rounds(), out=out, reporter=trouble)
    assert stop.value.exit_code == 3
    assert "fedsim resume" in str(stop.value)
    end(trouble.folder)
    (folder,) = out.glob("tiny/*")
    assert [r["round"] for r in Run.open(folder).rounds][:4] == [0, 1, 2, 3]
    resumed = simulation.resume(folder)
    assert resumed.status == "done"
    assert outcome(resumed) == outcome(whole)


@pytest.mark.parametrize("file", ["-4.safetensors", "round-000004.safetensors"])
def test_a_disk_that_fills_while_states_or_checkpoints_are_half_written(
    tmp_path, monkeypatch, file
):
    def full(number):
        if file in os.readlink(f"/proc/self/fd/{number}"):
            raise OSError(errno.ENOSPC, "No space left on device")

    scenario = six_rounds(engine={"client_state_mb": 1e-6})  # every state is spilled
    whole = simulation.run(scenario, out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match=r"safetensors: .*No space left") as stop:
            simulation.run(scenario, out=tmp_path / "runs")
    assert stop.value.exit_code == 3
    (folder,) = tmp_path.glob("runs/tiny/*")
    assert Run.open(folder).status == "failed"
    assert not list(folder.rglob("*.tmp"))
    resumed = simulation.resume(folder)
    assert "resumed after round 3" in "\n".join(resumed.events)
    assert outcome(resumed) == outcome(whole)


SCENARIO = """
name: tiny
seed: 3
num_rounds: 12
num_clients: 6
task: module
model: {name: "tests.problems:logistic"}
data: {path: "tests.problems:blobs"}
client: {name: "tests.engine.clients_that_misbehave:Counting", batch_size: 8, learning_rate: 0.1}
strategy: fedadam
engine: {backend: inline}
checkpoint: {every: 1}
"""


def fedsim(folder, *arguments, largest_file=None):
    """The real command, whose files may not grow beyond a size: as on a full disk, EFBIG."""

    def limit():
        if largest_file:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

    root = str(Path(__file__).parents[2])
    return subprocess.run(
        [sys.executable, "-m", "fedsim", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": root, "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=limit,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_the_command_ends_with_code_3_in_the_middle_of_a_line_and_resumes(tmp_path):
    (tmp_path / "tiny.yaml").write_text(SCENARIO)
    done = fedsim(tmp_path, "run", "tiny.yaml", "--out", "whole")
    assert done.returncode == 0, done.stderr
    (whole,) = tmp_path.glob("whole/tiny/*")
    size = (whole / "clients.jsonl").stat().st_size * 2 // 3
    stopped = fedsim(tmp_path, "run", "tiny.yaml", "--out", "full", largest_file=size)
    assert stopped.returncode == 3, stopped.stderr
    paragraph = next(line for line in stopped.stderr.splitlines() if line.startswith("fedsim: "))
    assert "clients.jsonl: cannot be written: File too large" in paragraph
    assert "Traceback" not in stopped.stderr
    (folder,) = tmp_path.glob("full/tiny/*")
    assert (folder / "clients.jsonl").stat().st_size == size
    assert Run.open(folder).status == "failed"
    assert Run.open(folder).summary["exit_code"] == 3
    resumed = fedsim(tmp_path, "resume", str(folder))
    assert resumed.returncode == 0, resumed.stderr
    assert outcome(Run.open(folder)) == outcome(Run.open(whole))


def hungry(tmp_path, **more):
    client = {"name": MISBEHAVE + "Hungry", "while_exists": str(tmp_path / "little-memory")}
    (tmp_path / "little-memory").touch()
    return {"client": {**client, **more}, "clients_per_round": 6}


def check_stops_and_resumes(tmp_path, scenario, words):
    with pytest.raises(RunError, match=words) as stop:
        simulation.run(scenario, out=tmp_path / "runs")
    assert stop.value.exit_code == 3
    (folder,) = tmp_path.glob("runs/tiny/*")
    assert Run.open(folder).status == "failed"
    assert Run.open(folder).summary["exit_code"] == 3
    (tmp_path / "little-memory").unlink()
    whole = simulation.run(
        scenario.model_copy(update={"engine": six_rounds().engine}), out=tmp_path / "whole"
    )
    assert outcome(simulation.resume(folder)) == outcome(whole)


@pytest.mark.parametrize(
    "engine", [{"backend": "inline"}, pytest.param(RAY, marks=pytest.mark.slow)]
)
def test_a_client_without_memory_is_a_failed_client(tmp_path, engine):
    strict = {"max_failed_fraction": 0.0, "engine": engine}
    scenario = six_rounds(**hungry(tmp_path), **strict)
    check_stops_and_resumes(tmp_path, scenario, r"client 2, round 3, train:.*(Memory|allocate)")


@pytest.mark.slow
def test_a_client_that_is_killed_for_its_memory_each_time_is_a_failed_client(tmp_path):
    strict = {"max_failed_fraction": 0.0, "engine": RAY}
    scenario = six_rounds(**hungry(tmp_path, killed=True), **strict)
    words = r"client 2, round 3, train: it ended every worker process"
    check_stops_and_resumes(tmp_path, scenario, words)
