"""Trackers: what tools are told is what the run folder holds, and nothing they do changes a run."""

import json
import random
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from fedsim import simulation, tracking
from fedsim.compare import table
from fedsim.differences import group
from fedsim.errors import PluginError, RunError
from fedsim.results import Run, RunFolder
from fedsim.scenario import Scenario
from tests.command import Command
from tests.engine.runs import outcome, stopped
from tests.problems import tiny
from tests.run_folders import make_run

HERE = "tests.test_trackers:"
KEYS = ("eval/accuracy", "comm/up_bytes", "comm/down_bytes_cum", "time/wall_s", "mem/peak_bytes")


class Notes(tracking.Tracker):
    """Writes down what it is told, and meddles with every global generator."""

    told: ClassVar[list] = []

    def start(self, run, after):
        self.told.append(("start", run.name, after))

    def log(self, server_round, values):
        print("hello from a chatty tool")
        self.told.append((server_round, dict(values)))
        torch.manual_seed(1)
        np.random.default_rng().random()
        random.seed(2)

    def finish(self, run):
        self.told.append(("finish", run.status, run.summary["final_round"]))


class Broken(Notes):
    """Fails in the second round."""

    def log(self, server_round, values):
        if server_round == 2:
            raise ConnectionError("the server\nis gone")
        super().log(server_round, values)


class Absent(Notes):
    """Needs what nobody has."""

    needs = ("fedsim_no_such_tool",)
    extra = "nothing"


@pytest.fixture(autouse=True)
def _forget():
    Notes.told.clear()


def scenario(*trackers, **changes) -> Scenario:
    return tiny(num_rounds=4, checkpoint={"every": 1}, track=list(trackers), **changes)


# ---- live


def test_a_tracker_hears_every_number_of_the_run_and_changes_none(tmp_path, capfd):
    plain = simulation.run(scenario(), out=tmp_path / "plain")
    run = simulation.run(scenario(HERE + "Notes"), out=tmp_path / "told")
    assert outcome(run) == outcome(plain)
    first, *rounds, last = Notes.told
    assert first == ("start", "tiny", -1)
    assert rounds == [(r["round"], tracking.numbers(r)) for r in run.rounds]
    assert set(KEYS) <= set(rounds[1][1])
    assert last == ("finish", "done", 4)
    out, err = capfd.readouterr()
    assert "chatty" not in out
    assert err.count("chatty") == 5


def test_a_resumed_run_goes_on_and_tells_later_rounds_again(tmp_path):
    whole = simulation.run(scenario(), out=tmp_path / "whole")
    folder = stopped(scenario(HERE + "Notes"), tmp_path, 2)
    before = [told[0] for told in Notes.told]
    resumed = simulation.resume(folder)
    assert outcome(resumed) == outcome(whole)
    assert before == ["start", 0, 1, 2, "finish"]
    assert [told[0] for told in Notes.told[5:]] == ["start", 2, 3, 4, "finish"]
    assert Notes.told[5] == ("start", "tiny", 1)  # round 2 had no checkpoint


def test_a_tracker_that_fails_is_warned_of_once_and_the_run_goes_on(tmp_path):
    plain = simulation.run(scenario(), out=tmp_path / "plain")
    run = simulation.run(scenario(HERE + "Broken", HERE + "Notes"), out=tmp_path / "run")
    assert outcome(run) == outcome(plain)
    (warning,) = [line for line in run.events if "tracker" in line]
    assert "is told no more; `fedsim export" in warning
    assert "ConnectionError: the server | is gone" in warning
    assert [told[0] for told in Notes.told if told[0] == "finish"] == ["finish"]  # the sound one


def test_the_round_that_ends_a_run_is_told_too(tmp_path):
    bad = {"name": "tests.engine.clients_that_misbehave:FailsInRoundTwo"}
    with pytest.raises(RunError, match="clients failed in round 2"):
        simulation.run(scenario(HERE + "Notes", client=bad, max_failed_fraction=0), out=tmp_path)
    assert [told[0] for told in Notes.told] == ["start", 0, 1, 2, "finish"]
    assert Notes.told[3][1]["clients/failed"] > 0
    assert Notes.told[4][1] == "failed"


def test_what_is_not_installed_or_unknown_is_refused_when_the_scenario_is_loaded(
    tmp_path, monkeypatch, capfd
):
    fedsim = Command(tmp_path, monkeypatch, capfd)
    text = json.dumps(tiny().model_dump(mode="json", exclude_unset=True))
    Path("s.yaml").write_text(f'{text[:-1]}, \n"track": [{HERE}Absent]}}')
    message = fedsim.refuses("validate", "s.yaml")
    assert message.startswith("s.yaml:2: Absent needs fedsim_no_such_tool, which is not installed")
    assert "pip install 'fedsim-ft[nothing]'" in message
    message = fedsim.refuses("validate", "s.yaml", "track=[tensorbored]")
    assert "there is no tracker called 'tensorbored'. Did you mean 'tensorboard'?" in message
    message = fedsim.refuses("validate", "s.yaml", "track=[{name: wandb, modus: offline}]")
    assert "unknown option 'modus' of tracker 'wandb'. Did you mean 'mode'?" in message


def test_trackers_and_tags_do_not_part_seeds(tmp_path):
    runs = [
        make_run(tmp_path, values={"seed": 0}),
        make_run(tmp_path, values={"seed": 1, "tags": ["x"], "track": ["tensorboard"]}),
    ]
    assert [len(members) for members in group(runs)] == [2]
    assert table(runs).options == ()


def test_numbers_leaves_out_what_is_none():
    record = {"round": 1, "a/b": 1, "a/c": float("nan"), "a/d": None, "a/e": "text", "plain": 2}
    assert tracking.numbers(record) == {"a/b": 1.0}


# ---- tools


@pytest.fixture
def run(tmp_path) -> Run:
    return make_run(tmp_path / "runs", (0.1, 0.5, 0.4), values={"tags": ["a", "b"]})


def wanted(run: Run) -> dict:
    """Points of each key: ``{key: [(round, value), ...]}``."""
    points: dict = {}
    for record in run.rounds:
        for key, value in tracking.numbers(record).items():
            points.setdefault(key, []).append((record["round"], pytest.approx(value)))
    return points


def in_tensorboard(folder: Path) -> dict:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {
        key: [(e.step, e.value) for e in events.Scalars(key)] for key in events.Tags()["scalars"]
    }


def test_tensorboard_has_the_keys_of_the_run_folder(run):
    tracking.export(run, tracking.build({"name": "tensorboard"}))
    assert in_tensorboard(run.path / "tensorboard") == wanted(run)


def test_tensorboard_replaces_rounds_that_come_again(tmp_path):
    folder = stopped(scenario("tensorboard"), tmp_path, 3)
    stale = {"round": 4, "eval/accuracy": 99.0, "time/wall_s": 1.0}
    RunFolder(folder).add_round(stale)  # what was written after the checkpoint
    tracking.export(Run.open(folder), tracking.build({"name": "tensorboard"}))
    resumed = simulation.resume(folder)
    assert in_tensorboard(folder / "tensorboard") == wanted(resumed)


def leveldb_log(data: bytes, at: int = 7) -> Iterator[bytes]:
    """Records of LevelDB's log format: pieces in blocks of 32 KiB; ``at`` counts file headers."""
    whole, position = b"", 0
    while position + 7 <= len(data):
        if (left := 32768 - (position + at) % 32768) < 7:
            position += left
            continue
        length, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        whole += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole or last
            yield whole
            whole = b""


def in_wandb(folder: Path) -> tuple[dict, dict]:
    """Config and points of the one offline run in a folder."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    config: dict = {}
    points: dict = {}
    for data in leveldb_log(file.read_bytes()[7:]):
        record = Record()
        record.ParseFromString(data)
        for item in record.run.config.update:
            config[item.key] = json.loads(item.value_json)
        row = {
            i.nested_key[0] if i.nested_key else i.key: i.value_json for i in record.history.item
        }
        if "round" in row:
            for key in row.keys() - {"round"}:
                if "/" in key:
                    point = int(float(row["round"])), json.loads(row[key])
                    points.setdefault(key, []).append(point)
    return config, points


@pytest.mark.slow
def test_wandb_offline_has_the_keys_of_the_run_folder(run):
    tracking.export(run, tracking.build({"name": "wandb", "project": "x"}))
    for _ in range(60):  # its service writes the file in a process of its own
        config, points = in_wandb(run.path)
        if len(points) == len(wanted(run)):
            break
        time.sleep(0.5)
    assert points == wanted(run)
    assert config["data"] == {"path": "sklearn:digits"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of SQLAlchemy, by mlflow
def test_mlflow_has_the_keys_of_the_run_folder_once(run, tmp_path):
    from mlflow.tracking import MlflowClient

    for _ in range(2):  # again is the same
        tracking.export(run, tracking.build({"name": "mlflow"}))
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    where = client.get_experiment_by_name("tiny").experiment_id
    (found,) = client.search_runs([where])
    assert found.info.status == "FINISHED"
    assert found.data.params["data.path"] == "sklearn:digits"
    assert found.data.tags["fedsim.tags"] == "a, b"
    history = {key: client.get_metric_history(found.info.run_id, key) for key in wanted(run)}
    assert {k: [(p.step, p.value) for p in points] for k, points in history.items()} == wanted(run)
    assert set(found.data.metrics) == set(wanted(run))


def test_trackio_is_called_as_its_api_wants(run, monkeypatch):
    """Its real package needs other versions than ours: this stands for its documented functions."""
    calls: list = []

    class Fake:
        def init(self, project, name, group, space_id, config, resume, embed, **auto):
            calls.append((project, name, space_id, resume, config["name"], auto))
            return self

        def log(self, metrics, step=None):
            calls.append((step, metrics))

        def finish(self):
            calls.append("finish")

    monkeypatch.setitem(sys.modules, "trackio", Fake())
    monkeypatch.setattr("fedsim.registry.find_spec", lambda name: name)
    tracking.export(run, tracking.build({"name": "trackio"}))
    off = {"auto_log_gpu": False, "auto_log_cpu": False}
    assert calls[0] == ("tiny", tracking.label(run), None, "allow", "tiny", off)
    assert calls[1:-1] == [(r["round"], tracking.numbers(r)) for r in run.rounds]
    assert calls[-1] == "finish"


def test_a_missing_tool_names_its_extra(monkeypatch):
    monkeypatch.setattr("fedsim.registry.find_spec", lambda name: None)
    for name in ("tensorboard", "wandb", "mlflow", "trackio"):
        with pytest.raises(PluginError, match=rf"pip install 'fedsim-ft\[{name}\]'"):
            tracking.build({"name": name})
