"""Ray starts early and ends when it should; runs may share its workers."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from fedsim import commands, simulation
from fedsim.engine import launch
from fedsim.engine.inline import InlineGrid
from fedsim.engine.launch import Launch
from fedsim.engine.ray_grid import RayGrid
from fedsim.errors import RunError
from fedsim.progress import Reporter
from fedsim.results import find_runs
from fedsim.scenario import EngineSection
from tests.engine.killing import command as command_line
from tests.engine.killing import descendants, workers_of
from tests.engine.runs import outcome, recipe
from tests.problems import tiny

ROOT = Path(__file__).parents[2]
RAY = {"backend": "ray", "workers": 2}


def write(folder):
    """The tiny scenario as a file."""
    values = tiny().model_dump(mode="json", exclude_unset=True)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    return str(folder / "tiny.yaml")


def command(folder, *arguments):
    """A scenario from the command line, in a process of its own."""
    given = [sys.executable, "-m", "fedsim", "run", write(folder), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(given, cwd=folder, env=environment, capture_output=True, text=True)


def test_ray_starts_before_heavy_libraries_load():
    code = (
        "import sys, fedsim.commands, fedsim.engine.launch\n"
        "print({'torch', 'flwr', 'datasets'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.slow
def test_ray_that_nobody_asked_for_makes_room_for_the_next():
    engine, model = EngineSection.model_validate(RAY), tiny().model
    with Launch(engine, model):
        pass
    assert launch.ends_unwanted()
    with Launch(engine, model) as wanted:
        import ray

        assert len(wanted.actors()) == 2
        assert not launch.ends_unwanted()
        first, second = wanted.actors()
        ray.kill(first)
        with RayGrid(recipe(tiny()), wanted) as grid:
            beside = " ".join(command_line(p) for p in descendants(psutil.Process()))
            assert "raylet" in beside
            assert "monitor.py" not in beside
            assert "dashboard.py" not in beside
            assert {p.nice() for p in workers_of(psutil.Process())} == {psutil.Process().nice()}
            with InlineGrid(recipe(tiny())) as here:
                assert grid.test(grid.facts["arrays"]) == here.test(here.facts["arrays"])
        ray.kill(second)
        with pytest.raises(RunError, match="no worker process is left"):
            RayGrid(recipe(tiny()), wanted).__enter__()
        changed = (launch._STARTS, *launch._UNUSED)
        left = {getattr(ray._private.node.Node, name).__name__ for name in changed}
        assert left == {*changed}  # for a Ray that someone else starts
        assert hasattr(ray._private.services, "wait_for_node")  # without it, starts are slower
    assert not ray.is_initialized()


@pytest.mark.slow
def test_a_typo_ends_the_command_although_ray_starts(tmp_path):
    done = command(tmp_path, "engine.backend=ray", "client.learnig_rate=1")
    assert done.returncode == 2
    assert done.stderr.startswith("fedsim: override 'client.learnig_rate=1': unknown option")
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_seeds_share_workers_and_keep_their_bits(tmp_path, monkeypatch):
    started, start = [], launch._start_actors
    monkeypatch.setattr(launch, "_start_actors", lambda *a: started.append(1) or start(*a))
    overrides = ["engine.backend=ray", "engine.workers=2", "seeds=[3, 4]"]
    commands.run(write(tmp_path), overrides, tmp_path / "runs", lambda seed: Reporter(), True)
    assert len(started) == 1
    shared = {run.seed: outcome(run) for run in find_runs([str(tmp_path / "runs")])}
    for seed in (3, 4):
        alone = simulation.run(tiny().model_copy(update={"seed": seed}), out=tmp_path / "alone")
        assert shared[seed] == outcome(alone)
