"""Who owns which rows: every partitioner by name, what they promise, and impossible splits."""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from fedsim.data import partition, partitioners
from fedsim.data.partition import Ownership, Ragged, Split
from fedsim.errors import DataError, FedsimError
from fedsim.scenario import Plugin, Scenario
from fedsim.seeds import Seeds

USER_MODULE = '''
import datetime
import datasets
import numpy as np
from flwr_datasets.partitioner import DirichletPartitioner, Partitioner, VerticalEvenPartitioner

def rows(n=240, test=0, labels=("a", "b", "c", "d")):
    """Labels in blocks, as sorted files have them; users of different sizes."""
    number = np.arange(n)
    table = datasets.Dataset.from_dict({
        "x": number,
        "label": [labels[i * len(labels) // n] for i in range(n)],
        "gappy": [(5, 10, 40)[i * 3 // n] for i in range(n)],
        "user": [f"u{int(np.sqrt(i))}" for i in range(n)],
        "day": [datetime.date(2020, 1, 1 + i % 3) for i in range(n)],
        "size": number * 0.5,
        "holes": [None if i == 7 else "v" for i in range(n)],
        "pair": [[i, i] for i in range(n)],
    })
    return {"train": table, "test": table.select(range(test))} if test else table

def size(ids): return ids ** 0.5

class EvenOdd(Partitioner):
    def __init__(self, offset: int = 0):
        super().__init__()
        self.offset = offset
    num_partitions = 2
    def load_partition(self, partition_id):
        odd = (np.asarray(self.dataset["x"][:]) + self.offset) % 2
        return self.dataset.select(np.flatnonzero(odd == partition_id))

class Narrow(DirichletPartitioner): pass
class Columns(VerticalEvenPartitioner): pass
class Broken(EvenOdd):
    def load_partition(self, partition_id): raise KeyError("oh no")
'''


@pytest.fixture(autouse=True)
def _user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owned_rows.py").write_text(USER_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "owned_rows", raising=False)


def scenario(partitioner: Any = "iid", num_clients: int | None = 6, **more: Any) -> Scenario:
    data = {"path": "owned_rows:rows", "partitioner": partitioner, **more.pop("data", {})}
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
    "id_to_size_fnc": ({"partition_id_to_size_fn": "owned_rows:size"}, 6),
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
GROUPS_ARE_THE_DATAS = ("natural_id",)


def test_every_partitioner_is_in_this_file() -> None:
    assert set(partition.available()) == set(EVERY)


@pytest.mark.parametrize("name", EVERY)
def test_every_partitioner(name: str) -> None:
    options, num_clients = EVERY[name]
    given = scenario({"name": name, **options}, num_clients)
    split, again, other = (partition.make(given, seed) for seed in (0, 0, 1))
    rows = owned(split)
    flat = [row for client in rows for row in client]
    everything = [*flat, *split.ownership.test.tolist()]
    assert len(set(everything)) == len(everything) == 240, "each row has exactly one owner"
    assert all(rows)
    assert num_clients in (None, len(rows))
    assert owned(again) == rows
    assert owned(other) != rows
    assert split.client_rows(0)["x"][:] == rows[0]
    assert split.num_examples(0) == len(rows[0])


@pytest.mark.parametrize("name", ["iid", "size", "linear"])
def test_blocks_are_cut_from_shuffled_rows(name: str) -> None:
    options, num_clients = EVERY[name]
    split = partition.make(scenario({"name": name, **options}, num_clients), 0)
    assert set(split.client_rows(split.num_clients - 1)["label"][:]) == {"a", "b", "c", "d"}


def test_rows_that_a_partitioner_leaves_out_have_no_owner() -> None:
    sizes = {"name": "size", "partition_sizes": [10, 20]}
    split = partition.make(scenario(sizes, None), 0)
    assert split.ownership.train.sizes.tolist() == [10, 20]


def test_ignored_rows_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    partition.make(scenario({"name": "size", "partition_sizes": [10, 20]}, None), 0)
    assert "smaller than the size of the dataset" in caplog.text


def test_natural_clients_are_the_values_in_order() -> None:
    split = partition.make(scenario({"name": "natural_id", "partition_by": "user"}, None), 0)
    users = [set(split.client_rows(i)["user"][:]) for i in range(split.num_clients)]
    assert users == [{user} for user in sorted(set.union(*users))]


@pytest.mark.parametrize("column", ["label", "gappy", "day"])
@pytest.mark.parametrize("name", ["dirichlet", "inner_dirichlet", "pathological", "shard"])
def test_labels_may_be_words_numbers_with_gaps_and_dates(name: str, column: str) -> None:
    options, num_clients = EVERY[name]
    options = {**options, "partition_by": column}
    split = partition.make(scenario({"name": name, **options}, num_clients), 0)
    assert split.ownership.train.sizes.sum() == 192


def test_dirichlet_equals_flowers_own() -> None:
    """The slim table and the label codes change nothing."""
    import owned_rows  # type: ignore[import-not-found]
    from flwr_datasets.partitioner import DirichletPartitioner

    table, pool = owned_rows.rows(), np.arange(240)
    options = {**BY, "alpha": 0.5, "min_partition_size": 3, "seed": 7}
    ours = partitioners.assign(Plugin(name="dirichlet", **options), 6, table, pool, Seeds(0))
    order = Seeds(7).numpy("partition", "order").permutation(pool)
    theirs = DirichletPartitioner(6, **options)
    theirs.dataset = table.select(order)
    for client, rows in enumerate(ours):
        assert rows.tolist() == theirs.load_partition(client)["x"][:]


def test_a_seed_among_the_options_fixes_the_partition() -> None:
    given = {"name": "dirichlet", **EVERY["dirichlet"][0], "seed": 3}
    data = {"options": {"test": 10}}
    first, second = (partition.make(scenario(given, data=data), seed) for seed in (0, 1))
    assert owned(first) == owned(second)


def test_class_names_and_user_classes() -> None:
    by_class = partition.make(scenario("IidPartitioner"), 0)
    assert owned(by_class) == owned(partition.make(scenario("iid"), 0))
    split = partition.make(scenario({"name": "owned_rows:EvenOdd", "offset": 1}, None), 0)
    assert {x % 2 for x in split.client_rows(0)["x"][:]} == {1}
    narrow = {"name": "owned_rows:Narrow", **EVERY["dirichlet"][0]}
    assert partition.make(scenario(narrow), 0).num_clients == 6


def test_a_thousand_clients_take_about_a_second() -> None:
    table = datasets.Dataset.from_dict({"label": np.arange(60_000) % 10})
    plugin = Plugin(name="dirichlet", **BY, alpha=1.0, min_partition_size=1)
    partitioners.find("dirichlet")  # imports
    start = time.perf_counter()
    parts = partitioners.assign(plugin, 1000, table, np.arange(60_000), Seeds(0))
    assert time.perf_counter() - start < 5  # 0.3 s alone; machines that run tests are busy
    assert sorted(np.concatenate(parts).tolist()) == list(range(60_000))


def test_held_out_test_set() -> None:
    split = partition.make(scenario(data={"test_fraction": 0.25}), 0)
    assert split.ownership.test_held_out
    assert (len(split.test), len(split.train)) == (60, 180)
    assert not set(split.test["x"][:]) & set(split.train["x"][:])
    assert split.test["x"][:] == split.ownership.test.tolist()


def test_a_test_split_of_the_data_is_used_whole() -> None:
    split = partition.make(scenario(data={"options": {"test": 15}}), 0)
    assert not split.ownership.test_held_out
    assert (len(split.test), len(split.train)) == (15, 240)
    assert split.ownership.test.tolist() == list(range(15))
    assert split.ownership.train.sizes.sum() == 240


def test_public_rows_belong_to_no_client() -> None:
    split = partition.make(scenario(model={"warm_start": {"fraction": 0.25}}), 0)
    public = set(split.ownership.public.tolist())
    assert len(split.public) == len(public) == 48  # a quarter of 80 % of 240
    assert not public & set(split.ownership.train.indices.tolist())
    assert not public & set(split.ownership.test.tolist())
    assert len(partition.make(scenario(), 0).public) == 0


def test_client_tests_are_a_part_of_each_client() -> None:
    whole = partition.make(scenario("linear"), 0)
    split = partition.make(scenario("linear", data={"client_test_fraction": 0.25}), 0)
    for client in range(6):
        train = split.ownership.train[client].tolist()
        test = split.ownership.client_test[client].tolist()
        assert sorted(train + test) == sorted(whole.ownership.train[client].tolist())
        assert len(test) == max(1, round(0.25 * len(train + test)))
        assert split.num_examples(client, "test") == len(test)
        assert split.client_rows(client, "test")["x"][:] == test
    assert whole.num_examples(0, "test") == 0


def test_ownership_travels_and_binds() -> None:
    given = scenario(data={"client_test_fraction": 0.2}, model={"warm_start": {"fraction": 0.1}})
    split = partition.make(given, 0)
    packed = pickle.dumps(split.ownership)
    assert len(packed) < 5_000
    bound = partition.bind(given, pickle.loads(packed))
    assert bound.num_clients == split.num_clients
    for part in ("train", "test"):
        assert bound.client_rows(3, part).to_list() == split.client_rows(3, part).to_list()
    assert bound.test.to_list() == split.test.to_list()
    assert bound.public.to_list() == split.public.to_list()


def test_binding_to_other_rows_is_refused() -> None:
    ownership = partition.make(scenario(), 0).ownership
    with pytest.raises(DataError, match="the data changed"):
        partition.bind(scenario(data={"options": {"n": 200}}), ownership)


def test_ragged_refuses_clients_that_are_not_there() -> None:
    lists = Ragged.of([np.array([4, 2]), np.array([7])])
    assert (len(lists), lists[1].tolist(), lists.sizes.tolist()) == (2, [7], [2, 1])
    for client in (-1, 2):
        with pytest.raises(IndexError, match="clients are 0 to 1"):
            lists[client]


def test_ownership_holds_arrays() -> None:
    ownership = partition.make(scenario(), 0).ownership
    assert isinstance(ownership, Ownership)
    for array in (ownership.train.indices, ownership.train.offsets, ownership.test):
        assert array.dtype == np.int64


FEW = {"options": {"n": 40}}
IMPOSSIBLE: list[tuple[Any, int | None, dict[str, Any], tuple[str, ...], str]] = [
    ("iidd", 6, {}, ("data", "partitioner", "name"), "Did you mean 'iid'?"),
    ("vertical_even", 6, {}, ("data", "partitioner", "name"), "splits columns"),
    ("VerticalSizePartitioner", 6, {}, ("data", "partitioner", "name"), "Partitioners of rows"),
    ("owned_rows:Columns", 6, {}, ("data", "partitioner", "name"), "splits columns"),
    ("owned_rows:Nobody", 6, {}, ("data", "partitioner", "name"), "has no 'Nobody'"),
    ("owned_rows:rows", 6, {}, ("data", "partitioner", "name"), "is no subclass"),
    ({"name": "owned_rows:Broken"}, None, {}, ("data", "partitioner"), "oh no"),
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
