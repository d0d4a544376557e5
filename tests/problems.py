"""Tiny problems for tests: a data set, a model and a scenario that runs in well under a second."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn

from fedsim.scenario import Scenario


@cache
def blobs(
    rows: int = 120, features: int = 4, classes: int = 3, seed: int = 0
) -> dict[str, Dataset]:
    """Gaussian clusters, one per class."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(classes, features)) * 2
    labels = np.arange(rows) % classes
    x = centers[labels] + rng.normal(size=(rows, features))
    data = Dataset.from_dict({"features": x.astype(np.float32), "label": labels})
    return {"train": data, "test": data.select(range(0, rows, 4))}


def logistic(features: int = 4, classes: int = 3) -> nn.Module:
    """Logistic regression."""
    return nn.Linear(features, classes)


def perceptron(features: int = 4, classes: int = 3, hidden: int = 8) -> nn.Module:
    """One hidden layer."""
    return nn.Sequential(nn.Linear(features, hidden), nn.Tanh(), nn.Linear(hidden, classes))


@cache
def mixture(noise: float = 1.8) -> dict[str, Dataset]:
    """Ten Gaussian classes in 32 dimensions: 4000 rows to train on and 2000 to test."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(10, 32))
    parts = {}
    for name, rows in (("train", 4000), ("test", 2000)):
        labels = rng.integers(0, 10, rows)
        x = centers[labels] + noise * rng.normal(size=(rows, 32))
        parts[name] = Dataset.from_dict({"features": x.astype(np.float32), "label": labels})
    return parts


def small_network() -> nn.Module:
    """32 -> tanh 32 -> 10 with 1386 parameters, the same in every run."""
    rng = np.random.default_rng(1)
    network = perceptron(32, 10, 32)
    with torch.no_grad():
        for parameter in network.parameters():
            values = rng.normal(size=tuple(parameter.shape)) / 6
            parameter.copy_(torch.from_numpy(values * (parameter.dim() > 1)))
    return network


def tiny(**changes: Any) -> Scenario:
    """Logistic regression on blobs, six clients, inline; mappings merge into their section."""
    values: dict[str, Any] = {
        "name": "tiny",
        "seed": 3,
        "num_rounds": 2,
        "num_clients": 6,
        "task": {"name": "module"},
        "model": {"name": "tests.problems:logistic"},
        "data": {"path": "tests.problems:blobs"},
        "client": {"name": "sgd", "learning_rate": 0.1, "batch_size": 8},
        "strategy": {"name": "fedavg"},
        "engine": {"backend": "inline"},
    }
    for key, change in changes.items():
        old = values.get(key)
        replace = not isinstance(change, dict) or "name" in change
        values[key] = change if replace else {**(old or {}), **change}
    return Scenario.model_validate(values)
