"""Impossible splits end in an error before anything starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedsim.data import partition
from fedsim.scenario import Plugin
from tests.splits import BY, EVERY, failure

FEW = {"options": {"n": 40}}
IMPOSSIBLE: list[tuple[Any, int | None, dict[str, Any], tuple[str, ...], str]] = [
    ("iidd", 6, {}, ("data", "partitioner", "name"), "Did you mean 'iid'?"),
    ("vertical_even", 6, {}, ("data", "partitioner", "name"), "splits columns"),
    ("VerticalSizePartitioner", 6, {}, ("data", "partitioner", "name"), "Partitioners of rows"),
    ("tests.splits:Columns", 6, {}, ("data", "partitioner", "name"), "splits columns"),
    ("tests.splits:Nobody", 6, {}, ("data", "partitioner", "name"), "has no 'Nobody'"),
    ("tests.splits:rows", 6, {}, ("data", "partitioner", "name"), "is no subclass"),
    ({"name": "tests.splits:Broken"}, None, {}, ("data", "partitioner"), "oh no"),
    (
        {"name": "dirichlet", **BY, "alfa": 1},
        6,
        {},
        ("data", "partitioner", "alfa"),
        "Did you mean 'alpha'?",
    ),
    ({"name": "dirichlet", **BY}, 6, {}, ("data", "partitioner"), "needs the option 'alpha'"),
    (
        {"name": "iid", "num_partitions": 6},
        6,
        {},
        ("data", "partitioner", "num_partitions"),
        "Set num_clients",
    ),
    ("iid", None, {}, ("data", "partitioner"), "needs num_clients"),
    ("iid", 193, {}, ("num_clients",), "193 clients but only 192 training rows"),
    (
        {"name": "shard", "partition_by": "labels", "num_shards_per_partition": 2},
        6,
        {},
        ("data", "partitioner", "partition_by"),
        "Did you mean 'label'?",
    ),
    (
        {"name": "natural_id", "partition_by": "holes"},
        None,
        {},
        ("data", "partitioner", "partition_by"),
        "without a value",
    ),
    (
        {"name": "natural_id", "partition_by": "pair"},
        None,
        {},
        ("data", "partitioner", "partition_by"),
        "holds lists",
    ),
    (
        {"name": "natural_id", "partition_by": "gappy"},
        2,
        {},
        ("num_clients",),
        "makes 3 clients, but num_clients is 2. Leave num_clients out",
    ),
    (
        {"name": "dirichlet", **BY, "alpha": 0.001, "min_partition_size": 0},
        30,
        {},
        ("data", "partitioner"),
        "would own no rows",
    ),
    (
        {"name": "dirichlet", **BY, "alpha": 0.001},
        6,
        {},
        ("data", "partitioner"),
        "Try a larger alpha",
    ),
    (
        {"name": "dirichlet", **BY, "alpha": 1},
        6,
        FEW,
        ("data", "partitioner", "min_partition_size"),
        "6 clients of at least 10 rows",
    ),
    (
        {"name": "pathological", **BY, "num_classes_per_partition": 9},
        6,
        {},
        ("data", "partitioner"),
        "'label' are numbered in order: 0 = a, 1 = b",
    ),
    ("linear", 30, FEW, ("data", "partitioner"), "not greater than 0"),
    (
        {"name": "continuous", "partition_by": "label", "strictness": 1},
        6,
        {},
        ("data", "partitioner"),
        "could not convert string",
    ),
    (
        {"name": "distribution", **EVERY["distribution"][0], "distribution_array": [[1], [1, 2]]},
        4,
        {},
        ("data", "partitioner"),
        "inhomogeneous",
    ),
    (
        {"name": "grouped_natural_id", "partition_by": "user", "group_size": 0},
        None,
        {},
        ("data", "partitioner"),
        "cannot split these rows",
    ),
    ("iid", 6, {"test_fraction": 0.0}, ("data", "test_fraction"), "there are no test rows"),
    ("iid", 6, {"test_fraction": 0.999}, ("data", "test_fraction"), "leaves the clients none"),
    (
        "iid",
        192,
        {"client_test_fraction": 0.2},
        ("data", "client_test_fraction"),
        "client 0 owns 1 row,",
    ),
]


@pytest.mark.parametrize(("partitioner", "num_clients", "data", "key", "text"), IMPOSSIBLE)
def test_impossible_splits(
    partitioner: Any, num_clients: int | None, data: Any, key: tuple[str, ...], text: str
) -> None:
    error = failure(partitioner, num_clients, data=data)
    assert error.key == key
    assert text in str(error)


def test_public_part_that_leaves_nothing() -> None:
    error = failure(model={"warm_start": {"fraction": 0.999}})
    assert error.key == ("model", "warm_start", "fraction")


def test_more_clients_a_round_than_there_are() -> None:
    error = failure({"name": "natural_id", "partition_by": "gappy"}, None, clients_per_round=4)
    assert error.key == ("clients_per_round",)
    assert "only 3 clients" in str(error)


def test_check_needs_no_data() -> None:
    plugin = Plugin(name="dirichlet", partition_by="label", alpha="0.5")
    assert partition.check(plugin) == {"partition_by": "label", "alpha": 0.5}


def test_names_are_listed_without_imports() -> None:
    code = (
        "import sys; from fedsim.data import partition; found = partition.available();"
        "assert found['iid'].summary;"
        "print([m for m in ('datasets', 'flwr_datasets', 'torch', 'pyarrow') if m in sys.modules])"
    )
    root = Path(partition.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert done.stdout.strip() == "[]"
