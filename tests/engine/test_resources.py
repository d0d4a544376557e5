"""What a worker gets of a machine, and where the model computes.

No test here has a GPU: they check the way to it, that a missing one is refused, and that arrays
which are copied to and from the model give the same bits as those in its own memory.
"""

import numpy as np
import pytest
import torch

from fedsim import simulation
from fedsim.engine import resources
from fedsim.engine.worker import Worker
from fedsim.errors import RunError
from fedsim.models import device
from fedsim.models.prefix import Rows
from fedsim.scenario import EngineSection
from fedsim.task import Task
from tests.engine.runs import outcome, recipe, six_rounds
from tests.problems import tiny


def test_a_fraction_of_a_cpu_makes_more_workers_of_a_machine(monkeypatch):
    monkeypatch.setattr(resources.os, "cpu_count", lambda: 3)
    assert resources.num_workers(EngineSection()) == 3
    assert resources.num_workers(EngineSection(cpus_per_worker=0.5)) == 6
    assert resources.num_workers(EngineSection(cpus_per_worker=8)) == 1
    assert resources.num_workers(EngineSection(cpus_per_worker=0.5, workers=2)) == 2


@pytest.mark.parametrize(
    ("engine", "cluster", "words"),
    [
        ({"cpus_per_worker": 0.5}, {"CPU": 1}, "3 workers with 0.5 CPUs each need 1.5"),
        ({}, {"CPU": 2.5}, "3 workers with 1 CPUs each need 3; the cluster has 2.5"),
        ({"gpus_per_worker": 0.25}, {"CPU": 9}, "the cluster has 0.*engine.gpus_per_worker"),
    ],
)
def test_too_small_a_cluster_is_refused_at_once(engine, cluster, words):
    section = EngineSection(**engine)
    resources.check(section, 3, {"CPU": 3, "GPU": 1})
    with pytest.raises(RunError, match=words):
        resources.check(section, 3, cluster)


def test_a_gpu_that_is_not_there_is_refused(tmp_path):
    assert not torch.cuda.is_available()
    with pytest.raises(RunError, match=r"gpus_per_worker is 0\.5, but torch finds no GPU") as stop:
        simulation.run(tiny(engine={"gpus_per_worker": 0.5}), out=tmp_path)
    assert stop.value.exit_code == 3


@pytest.mark.slow
def test_ray_says_that_there_is_no_gpu(tmp_path):
    engine = {"backend": "ray", "workers": 1, "gpus_per_worker": 0.5}
    with pytest.raises(RunError, match=r"need 0\.5; the cluster has 0"):
        simulation.run(tiny(engine=engine), out=tmp_path)


@pytest.mark.slow
def test_two_workers_share_a_cpu_to_the_same_bits(tmp_path):
    import ray

    seen = []

    class Watching(simulation.Reporter):
        def round_begins(self, server_round, num_clients):
            seen.append(ray.cluster_resources()["CPU"])

    engine = {"backend": "ray", "workers": 2, "cpus_per_worker": 0.5}
    run = simulation.run(six_rounds(engine=engine), out=tmp_path, reporter=Watching())
    assert outcome(run) == outcome(simulation.run(six_rounds(), out=tmp_path))
    assert set(seen) == {1.0}


def test_arrays_that_are_copied_to_the_model_give_the_same_bits(tmp_path, monkeypatch):
    whole = simulation.run(six_rounds(), out=tmp_path)
    monkeypatch.setattr(Task, "_views_are_memory", False)
    real = Task._views

    def copies(task):
        return {name: x.copy() for name, x in real(task).items()}

    monkeypatch.setattr(Task, "_views", copies)
    assert outcome(simulation.run(six_rounds(), out=tmp_path)) == outcome(whole)


def test_load_and_difference_meet_in_the_model(monkeypatch):
    monkeypatch.setattr(Task, "_views_are_memory", False)
    task = Worker(recipe(tiny())).task
    wanted = {name: np.full_like(x, 2.5) for name, x in task.trainable().items()}
    task.load(wanted)
    assert all((p == 2.5).all() for p in task.parameters.values())
    assert all((x == 0).all() for x in task.difference(wanted).values())


def test_a_batch_is_brought_to_the_device_and_rows_keep_their_answers():
    batch = {"x": torch.ones(2, 3)}
    assert device.place(batch, torch.device("cpu")) is batch
    rows = Rows(batch, torch.zeros(2, 4))
    moved = device.place(rows, torch.device("meta"))
    assert isinstance(moved, Rows)
    assert {t.device.type for t in (moved["x"], moved.hidden)} == {"meta"}
