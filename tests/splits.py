"""Rows, partitioners and scenarios for tests of who owns what."""

from __future__ import annotations

import datetime
from typing import Any

import datasets
import numpy as np
import pytest
from flwr_datasets.partitioner import DirichletPartitioner, Partitioner, VerticalEvenPartitioner

from fedsim.data import partition
from fedsim.data.partition import Split
from fedsim.errors import FedsimError
from fedsim.scenario import Scenario


def rows(n=240, test=0, labels=("a", "b", "c", "d")):
    """Labels in blocks, as sorted files have them; users of different sizes."""
    number = np.arange(n)
    table = datasets.Dataset.from_dict(
        {
            "x": number,
            "label": [labels[i * len(labels) // n] for i in range(n)],
            "gappy": [(5, 10, 40)[i * 3 // n] for i in range(n)],
            "user": [f"u{int(np.sqrt(i))}" for i in range(n)],
            "day": [datetime.date(2020, 1, 1 + i % 3) for i in range(n)],
            "size": number * 0.5,
            "holes": [None if i == 7 else "v" for i in range(n)],
            "pair": [[i, i] for i in range(n)],
        }
    )
    return {"train": table, "test": table.select(range(test))} if test else table


def size(ids):
    return ids**0.5


class EvenOdd(Partitioner):
    def __init__(self, offset: int = 0):
        super().__init__()
        self.offset = offset

    num_partitions = 2

    def load_partition(self, partition_id):
        odd = (np.asarray(self.dataset["x"][:]) + self.offset) % 2
        return self.dataset.select(np.flatnonzero(odd == partition_id))


class Narrow(DirichletPartitioner):
    pass


class Columns(VerticalEvenPartitioner):
    pass


class Broken(EvenOdd):
    def load_partition(self, partition_id):
        raise KeyError("oh no")


def scenario(partitioner: Any = "iid", num_clients: int | None = 6, **more: Any) -> Scenario:
    data = {"path": "tests.splits:rows", "partitioner": partitioner, **more.pop("data", {})}
    model = {"config": {"model_type": "vit"}, **more.pop("model", {})}
    return Scenario.model_validate(
        {
            "num_rounds": 1,
            "num_clients": num_clients,
            "task": "image_classification",
            "model": model,
            "data": data,
            **more,
        }
    )


def failure(*args: Any, **more: Any) -> FedsimError:
    with pytest.raises(FedsimError) as caught:
        partition.make(scenario(*args, **more), 0)
    assert caught.value.exit_code == 2
    return caught.value


def owned(split: Split) -> list[list[int]]:
    return [split.ownership.train[i].tolist() for i in range(split.num_clients)]


BY = {"partition_by": "label"}
EVERY: dict[str, tuple[dict[str, Any], int | None]] = {
    "iid": ({}, 6),
    "linear": ({}, 6),
    "square": ({}, 6),
    "exponential": ({}, 4),
    "id_to_size_fnc": ({"partition_id_to_size_fn": "tests.splits:size"}, 6),
    "size": ({"partition_sizes": [100, 60, 32]}, None),
    "natural_id": ({"partition_by": "user"}, None),
    "grouped_natural_id": ({"partition_by": "user", "group_size": 4}, None),
    "dirichlet": ({**BY, "alpha": 0.5, "min_partition_size": 3}, 6),
    "inner_dirichlet": ({**BY, "alpha": 0.5, "partition_sizes": [100, 60, 32]}, None),
    "distribution": (
        {
            **BY,
            "distribution_array": [[1, 3], [1, 1], [2, 1], [1, 1]],
            "num_unique_labels_per_partition": 2,
            "preassigned_num_samples_per_label": 1,
        },
        4,
    ),
    "pathological": ({**BY, "num_classes_per_partition": 2}, 6),
    "shard": ({**BY, "num_shards_per_partition": 2}, 6),
    "continuous": ({"partition_by": "size", "strictness": 0.5}, 6),
}
