"""Who owns which rows: every partitioner by name, what they promise, and impossible splits."""

from __future__ import annotations

import pickle

import datasets
import numpy as np
import pytest

from fedsim.data import partition, partitioners
from fedsim.data.lazy import LAZY
from fedsim.data.partition import Ownership, Ragged
from fedsim.errors import DataError
from fedsim.scenario import Plugin
from fedsim.seeds import Seeds
from tests.splits import BY, EVERY, owned, scenario

GROUPS_ARE_THE_DATAS = ("natural_id",)


def test_every_partitioner_is_in_this_file() -> None:
    assert set(partition.available()) == set(EVERY) | set(LAZY)  # those have a file of their own


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
    from flwr_datasets.partitioner import DirichletPartitioner

    from tests import splits

    table, pool = splits.rows(), np.arange(240)
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
    split = partition.make(scenario({"name": "tests.splits:EvenOdd", "offset": 1}, None), 0)
    assert {x % 2 for x in split.client_rows(0)["x"][:]} == {1}
    narrow = {"name": "tests.splits:Narrow", **EVERY["dirichlet"][0]}
    assert partition.make(scenario(narrow), 0).num_clients == 6


def test_a_thousand_clients_of_sixty_thousand_rows() -> None:
    table = datasets.Dataset.from_dict({"label": np.arange(60_000) % 10})
    plugin = Plugin(name="dirichlet", **BY, alpha=1.0, min_partition_size=1)
    parts = partitioners.assign(plugin, 1000, table, np.arange(60_000), Seeds(0))
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
