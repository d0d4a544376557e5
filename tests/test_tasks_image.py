"""Image and module tasks, and the resident task they live in."""

import numpy as np
import pytest
import torch
from datasets import Array3D, Dataset, Features, Image, Value
from PIL import Image as Pillow
from torch import nn

from fedsim import registry, simulation
from fedsim.data import partition
from fedsim.engine.worker import Recipe, Worker
from fedsim.errors import DataError, ModelError, PayloadError
from fedsim.models.cnn import simple_cnn
from tests.problems import tiny


def task(**options):
    return registry.build("tasks", {"name": "image_classification", **options})


def encode(images, **options):
    rows = Dataset.from_dict({"image": images, "label": [0] * len(images)})
    return task(**options).encode(rows)["images"]


def test_layouts_and_scales():
    flat = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    assert encode(flat.tolist()).shape == (2, 1, 3, 4)
    assert encode(np.zeros((2, 5, 6, 3)).tolist()).shape == (2, 3, 5, 6)
    assert encode(np.zeros((2, 3, 5, 6)).tolist()).shape == (2, 3, 5, 6)
    features = Features({"image": Array3D((4, 4, 1), "uint8"), "label": Value("int64")})
    bright = {"image": np.full((1, 4, 4, 1), 255, np.uint8), "label": [0]}
    images = task().encode(Dataset.from_dict(bright, features=features))["images"]
    assert images.dtype == torch.float32
    assert images.unique().tolist() == [1.0]


def test_pillow_images_resizing_and_standardising():
    features = Features({"image": Image(), "label": Value("int64")})
    rows = {"image": [Pillow.new("RGB", (6, 6), (255, 0, 51))], "label": [0]}
    data = Dataset.from_dict(rows, features=features)
    options = {"image_size": 3, "mean": [0.5, 0.5, 0.5], "std": [0.5, 1.0, 0.1]}
    images = task(**options).encode(data)["images"]
    assert images.shape == (1, 3, 3, 3)
    np.testing.assert_allclose(images[0, :, 1, 1], [1.0, -0.5, -3.0], atol=1e-5)


def test_a_missing_column_is_named():
    with pytest.raises(DataError, match=r"no column 'image'.*Columns: picture, label"):
        task().encode(Dataset.from_dict({"picture": [[[0.0]]], "label": [0]}))


def test_the_benchmark_cnn_has_the_published_size():
    assert sum(p.numel() for p in simple_cnn()[0].parameters()) == 896
    assert sum(p.numel() for p in simple_cnn().parameters()) == 1_626_442
    assert simple_cnn(1, 28)(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def normed() -> nn.Module:
    """A network with running statistics."""
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def build(**changes) -> Worker:
    scenario = tiny(**changes)
    split = partition.make(scenario, scenario.seed)
    return Worker(Recipe(scenario, split.ownership, scenario.seed))


def test_running_statistics_travel_and_are_averaged(tmp_path):
    model = {"name": "tests.test_tasks_image:normed"}
    worker = build(model=model)
    assert "1.running_mean" in worker.like
    assert "1.running_mean" not in worker.task.parameters
    run = simulation.run(tiny(model=model, num_rounds=4), out=tmp_path)
    assert run.rounds[-1]["eval/loss"] < run.rounds[0]["eval/loss"]


def test_loading_resets_every_tensor_and_refuses_another_layout():
    worker = build(model={"name": "tests.test_tasks_image:normed"})
    before = {k: v.clone() for k, v in worker.task.model.state_dict().items()}
    worker.task.model.train()
    worker.task.model(torch.randn(8, 4))
    worker.task.load(worker.like)
    after = worker.task.model.state_dict()
    assert all(torch.equal(after[k], before[k]) for k in before)
    with pytest.raises(PayloadError, match="other names"):
        worker.task.load({"x": np.zeros(1)})
    with pytest.raises(PayloadError, match="shape"):
        worker.task.load({k: v[..., :1] for k, v in worker.like.items()})


def test_loading_never_aliases_the_source():
    worker = build()
    source = {k: v.copy() for k, v in worker.like.items()}
    worker.task.load(source)
    with torch.no_grad():
        for p in worker.task.model.parameters():
            p.add_(1)
    assert all(np.array_equal(source[k], worker.like[k]) for k in source)


def regression() -> nn.Module:
    """Linear regression."""
    return nn.Linear(4, 1)


def test_module_task_regression(tmp_path):
    scenario = tiny(
        task={"name": "module", "loss_function": "mse_loss"},
        model={"name": "tests.test_tasks_image:regression"},
        client={"name": "sgd", "learning_rate": 0.01},
    )
    run = simulation.run(scenario, out=tmp_path)
    assert run.summary["key_metric"]["name"] == "eval/loss"
    assert run.rounds[-1]["eval/loss"] < run.rounds[0]["eval/loss"]
    assert "eval/accuracy" not in run.rounds[-1]


def test_module_task_wants_a_function_that_returns_a_module():
    with pytest.raises(ModelError, match="module:function"):
        build(model={"config": {"model_type": "vit"}, "name": None})
    with pytest.raises(ModelError, match=r"must return a torch\.nn\.Module"):
        build(model={"name": "tests.problems:blobs"})


def test_the_cache_of_client_rows_keeps_its_budget(monkeypatch):
    worker = build()
    one = sum(t.numel() * t.element_size() for t in worker.task.client_data(0).values())
    monkeypatch.setattr("fedsim.task.CACHE_BYTES", 2 * one)
    for client in (0, 1, 2, 3, 0):
        worker.task.client_data(client)
    assert len(worker.task._cache) == 2
    assert worker.task._cache_bytes == 2 * one
    assert worker.task.client_data(0) is worker.task.client_data(0)
