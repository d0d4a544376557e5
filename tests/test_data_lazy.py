"""Populations whose clients' rows are drawn when they are asked for: purity, theory, limits."""

from __future__ import annotations

import math
import pickle
import tracemalloc
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from fedsim import listing, simulation
from fedsim import task as task_module
from fedsim.data import partition, partitioners
from fedsim.data.lazy import (
    LAZY,
    LazyDirichlet,
    LazyIid,
    LazyOwned,
    LazyPartitioner,
    LazyQuantity,
    _distinct,
)
from fedsim.engine.inline import InlineGrid
from fedsim.engine.worker import Recipe, Worker
from fedsim.seeds import Seeds
from tests.problems import tiny
from tests.splits import BY, failure, scenario

MILLIONS = 15_000_000
LABELS = {"name": "lazy_dirichlet", **BY, "alpha": 0.5, "rows_per_client": 8}
EVERY: dict[str, dict[str, Any]] = {
    "lazy_dirichlet": LABELS,
    "lazy_iid": {"name": "lazy_iid", "rows_per_client": 8},
    "lazy_quantity": {"name": "lazy_quantity", "min_rows": 2, "mean_rows": 8, "max_rows": 50},
}


def split(name: str, num_clients: int = 1000, seed: int = 0, **more: Any) -> partition.Split:
    return partition.make(
        scenario({**EVERY[name], **more.pop("with_", {})}, num_clients, **more), seed
    )


def first(made: partition.Split, clients: int = 50) -> list[list[int]]:
    return [made.client_indices(client).tolist() for client in range(clients)]


def population(partitioner: LazyPartitioner, *sizes: int, seed: int = 0) -> LazyOwned:
    """A population over rows 0 .. sum(sizes) - 1, sorted by label."""
    rows = np.arange(sum(sizes))
    return LazyOwned(partitioner, rows, np.array(sizes), MILLIONS, Seeds(seed))


def test_every_lazy_partitioner_is_in_this_file() -> None:
    assert set(LAZY) == set(EVERY) == {n for n in partition.available() if n.startswith("lazy_")}


@pytest.mark.parametrize("name", EVERY)
def test_rows_are_a_pure_function_of_seed_and_client(name: str) -> None:
    rows = first(split(name))
    again = split(name)
    backwards = [again.client_indices(client).tolist() for client in reversed(range(50))]
    assert backwards[::-1] == rows
    assert first(split(name, num_clients=60)) == rows, "whatever the number of clients"
    assert first(split(name, num_clients=MILLIONS)) == rows
    assert again.ownership.train[np.int64(7)].tolist() == rows[7], "whatever the integer's type"
    assert first(split(name, seed=1)) != rows
    assert len({tuple(client) for client in rows}) == 50, "clients differ"


@pytest.mark.parametrize("name", EVERY)
def test_rows_differ_within_a_client_and_are_of_the_pool(name: str) -> None:
    made = split(name, model={"warm_start": {"fraction": 0.25}})
    others = {*made.ownership.test.tolist(), *made.ownership.public.tolist()}
    assert len(others) == 48 + 48
    for rows in first(made, 300):
        assert rows
        assert len(set(rows)) == len(rows)
        assert not others & set(rows)
    assert made.client_rows(0)["x"][:] == made.client_indices(0).tolist()


@pytest.mark.parametrize("name", EVERY)
def test_a_seed_among_the_options_fixes_the_partition(name: str) -> None:
    given = {"with_": {"seed": 3}, "data": {"options": {"test": 10}}}
    one, other = split(name, seed=0, **given), split(name, seed=1, **given)
    assert first(one) == first(other)
    assert first(one) != first(split(name, data={"options": {"test": 10}}))


@pytest.mark.slow_variants
@pytest.mark.parametrize("alpha", [0.1, 1.0, 50.0])
def test_label_shares_have_the_moments_of_dirichlet_and_multinomial(alpha: float) -> None:
    """Documented: mean 1/K, variance (1/K)(1 - 1/K)(n + K alpha) / (n (1 + K alpha))."""
    K, n, clients = 5, 20, 4000
    sizes = [30, 20, 400, 50, 25]  # the pool's own frequencies do not matter
    owned = population(LazyDirichlet(alpha=alpha, partition_by="", rows_per_client=n), *sizes)
    label = np.repeat(np.arange(K), sizes)
    counts = [np.bincount(label[owned[i]], minlength=K) for i in range(clients)]
    shares = np.array(counts) / n  # (clients, K)
    variance = (1 / K) * (1 - 1 / K) * (n + K * alpha) / (n * (1 + K * alpha))
    np.testing.assert_allclose(shares.mean(axis=0), 1 / K, atol=4 * math.sqrt(variance / clients))
    np.testing.assert_allclose(shares.var(axis=0), variance, rtol=0.1)
    np.testing.assert_allclose(shares.sum(axis=1), 1)


def test_a_small_alpha_gives_one_label_and_a_large_one_the_same_mix() -> None:
    label = np.repeat(np.arange(4), 100)
    one = population(LazyDirichlet(alpha=1e-6, partition_by=""), *[100] * 4)
    assert all(len(set(label[one[i]])) == 1 for i in range(200))
    many = population(LazyDirichlet(alpha=1e6, partition_by="", rows_per_client=100), *[100] * 4)
    counts = np.array([np.bincount(label[many[i]], minlength=4) for i in range(500)])
    assert counts.var(axis=0) == pytest.approx(100 / 4 * 3 / 4, rel=0.25)  # multinomial


def test_sizes_are_log_normal() -> None:
    """Documented: ln(rows) ~ Normal(ln(mean_rows) - sigma**2 / 2, sigma)."""
    mean, sigma, clients = 200.0, 0.5, 4000
    owned = population(LazyQuantity(mean_rows=mean, sigma=sigma), 20_000)
    sizes = np.array([len(owned[i]) for i in range(clients)])
    assert np.log(sizes).mean() == pytest.approx(math.log(mean) - sigma**2 / 2, abs=0.03)
    assert np.log(sizes).std() == pytest.approx(sigma, rel=0.05)
    assert sizes.mean() == pytest.approx(mean, rel=0.03)
    assert np.median(sizes) == pytest.approx(mean * math.exp(-(sigma**2) / 2), rel=0.03)
    assert sizes.var() == pytest.approx(mean**2 * (math.exp(sigma**2) - 1), rel=0.15)


def test_sizes_keep_their_limits() -> None:
    owned = population(LazyQuantity(min_rows=5, mean_rows=20, sigma=2.0, max_rows=40), 60)
    sizes = {len(owned[i]) for i in range(500)}
    assert (min(sizes), max(sizes)) == (5, 40)
    open_ended = population(LazyQuantity(mean_rows=20, sigma=2.0), 60)
    assert {1, 60} <= {len(open_ended[i]) for i in range(500)}
    equal = population(LazyQuantity(mean_rows=7.0, sigma=0.0), 60)
    assert {len(equal[i]) for i in range(100)} == {7}


def test_iid_clients_draw_every_row_equally_often() -> None:
    owned = population(LazyIid(rows_per_client=6), 30)
    counts = np.bincount(np.concatenate([owned[i] for i in range(5000)]), minlength=30)
    assert counts == pytest.approx(np.full(30, 1000.0), rel=0.12)  # 4 standard deviations
    shared = [len(np.intersect1d(owned[2 * i], owned[2 * i + 1])) for i in range(2000)]
    assert np.mean(shared) == pytest.approx(6 * 6 / 30, rel=0.08)  # clients are independent


def test_samples_by_label_are_uniform_over_all_subsets() -> None:
    generator = np.random.default_rng(0)
    sizes, counts = np.array([4, 1, 3]), np.array([2, 0, 1])
    draws = [tuple(sorted(_distinct(generator, sizes, counts))) for _ in range(9000)]
    found = Counter(draws)
    expected = {(a, b, c) for a in range(4) for b in range(a + 1, 4) for c in (5, 6, 7)}
    assert set(found) == expected
    assert np.array(list(found.values())) == pytest.approx(np.full(18, 500.0), rel=0.18)


def test_rows_of_a_dirichlet_client_come_in_random_order() -> None:
    """So that a client's test rows are of every label."""
    owned = population(LazyDirichlet(alpha=1.0, partition_by=""), 50, 50)
    label_of_first = np.array([owned[i][0] >= 50 for i in range(2000)])
    assert label_of_first.mean() == pytest.approx(0.5, abs=0.05)


def test_client_tests_are_a_part_of_each_client() -> None:
    for name in EVERY:
        whole = split(name)
        made = split(name, data={"client_test_fraction": 0.25})
        for client in range(100):
            train = made.client_indices(client).tolist()
            test = made.client_indices(client, "test").tolist()
            assert not set(train) & set(test)
            assert test + train == whole.client_indices(client).tolist()
            assert len(test) == max(1, round(0.25 * len(test + train)))
            assert train
        assert made.num_examples(3, "test") == len(made.client_rows(3, "test"))
        assert whole.num_examples(3, "test") == 0


def test_rows_are_of_the_label_that_was_drawn() -> None:
    made = split("lazy_dirichlet", with_={"alpha": 1e-6, "partition_by": "gappy"})
    held = [set(made.client_rows(client)["gappy"][:]) for client in range(50)]
    assert all(len(labels) == 1 for labels in held)
    assert set.union(*held) == {5, 10, 40}


@pytest.mark.parametrize("name", EVERY)
def test_fifteen_million_clients_are_as_small_as_ten(name: str) -> None:
    ten, many = (
        split(name, num_clients=n, data={"client_test_fraction": 0.2}) for n in (10, MILLIONS)
    )
    packed = pickle.dumps(many.ownership)
    assert len(packed) <= len(pickle.dumps(ten.ownership)) + 8
    assert len(packed) < 20_000
    there = pickle.loads(packed)
    assert len(there.train) == len(there.client_test) == MILLIONS
    assert there.train[MILLIONS - 1].tolist() == many.client_indices(MILLIONS - 1).tolist()
    for client in (-1, MILLIONS):
        with pytest.raises(IndexError, match=f"clients are 0 to {MILLIONS - 1}"):
            there.train[client]


def test_nothing_is_kept_of_clients_that_were_asked_for() -> None:
    owned = split("lazy_dirichlet", num_clients=MILLIONS).ownership.train
    owned[0]
    tracemalloc.start()
    try:
        for client in range(0, MILLIONS, MILLIONS // 2000):
            owned[client]
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 20_000


FAULTS: list[tuple[dict[str, Any], int | None, dict[str, Any], tuple[str, ...], str]] = [
    ({"name": "lazy_idd"}, 9, {}, ("data", "partitioner", "name"), "Did you mean 'lazy_iid'?"),
    ({"name": "lazy_iid"}, None, {}, ("data", "partitioner"), "needs num_clients"),
    (
        {"name": "lazy_iid", "rows": 3},
        9,
        {},
        ("data", "partitioner", "rows"),
        "unknown option 'rows'",
    ),
    (
        {"name": "lazy_iid", "rows_per_client": 0},
        9,
        {},
        ("data", "partitioner", "rows_per_client"),
        "greater than 0",
    ),
    (
        {"name": "lazy_iid", "rows_per_client": 193},
        9,
        {},
        ("data", "partitioner", "rows_per_client"),
        "rows_per_client is 193, but there are 192 training rows",
    ),
    ({"name": "lazy_dirichlet", **BY}, 9, {}, ("data", "partitioner"), "needs the option 'alpha'"),
    ({**LABELS, "alpha": 0}, 9, {}, ("data", "partitioner", "alpha"), "greater than or equal"),
    (
        {**LABELS, "partition_by": "labels"},
        9,
        {},
        ("data", "partitioner", "partition_by"),
        "Did you mean 'label'?",
    ),
    (
        {**LABELS, "rows_per_client": 60},
        9,
        {},
        ("data", "partitioner", "rows_per_client"),
        "a label has only",
    ),
    (
        {"name": "lazy_quantity", "mean_rows": 3, "min_rows": 4},
        9,
        {},
        ("data", "partitioner", "mean_rows"),
        "outside min_rows (4) to max_rows (all)",
    ),
    (
        {"name": "lazy_quantity", "max_rows": 200},
        9,
        {},
        ("data", "partitioner", "max_rows"),
        "max_rows is 200, but there are 192",
    ),
    (
        {"name": "lazy_quantity", "mean_rows": 192.5},
        9,
        {},
        ("data", "partitioner", "mean_rows"),
        "mean_rows is 193, but there are 192",
    ),
    (
        {"name": "lazy_quantity"},
        9,
        {"client_test_fraction": 0.2},
        ("data", "client_test_fraction"),
        "a client may own 1 row only",
    ),
    (
        {"name": "lazy_iid", "rows_per_client": 4},
        9,
        {"client_test_fraction": 0.9},
        ("data", "client_test_fraction"),
        "leaves it none to train on",
    ),
]


@pytest.mark.parametrize(("plugin", "num_clients", "data", "key", "text"), FAULTS)
def test_impossible_populations(
    plugin: Any, num_clients: int | None, data: Any, key: tuple[str, ...], text: str
) -> None:
    error = failure(plugin, num_clients, data=data)
    assert error.key == key
    assert text in str(error)


def test_more_clients_than_rows_are_pointed_to_these_partitioners() -> None:
    assert "lazy_iid" in str(failure("iid", 193))


@dataclass(frozen=True, kw_only=True)
class OwnRow(LazyPartitioner):
    """One row for everybody."""

    row: int = 3
    least = 1

    def check(self, sizes):
        assert self.row < sizes.sum()

    def draw(self, generator, sizes):
        return np.array([self.row])


def test_classes_of_users() -> None:
    plugin = {"name": "tests.test_data_lazy:OwnRow", "row": 5}
    made = partition.make(scenario(plugin, MILLIONS, data={"options": {"test": 9}}), 0)
    assert made.client_rows(MILLIONS - 1)["x"][:] == [5]
    assert partitioners.find("tests.test_data_lazy:OwnRow") is OwnRow


def test_cards_and_lists(capsys: pytest.CaptureFixture[str]) -> None:
    listing.print_list("partitioners", json=False)
    assert "lazy_quantity" in capsys.readouterr().out
    listing.show("lazy_dirichlet")
    card = capsys.readouterr().out
    for text in ("**re-used**", "Dir(alpha, ..., alpha)", "rows_per_client", "default 20"):
        assert text in card


def millions(**changes: Any):
    data = {
        "path": "tests.problems:blobs",
        "partitioner": {"name": "lazy_dirichlet", **BY, "alpha": 0.3, "rows_per_client": 10},
        "client_test_fraction": 0.2,
    }
    return tiny(num_clients=1_000_000, clients_per_round=20, data=data, **changes)


def test_a_run_with_a_million_clients(tmp_path) -> None:
    run = simulation.run(millions(), out=tmp_path)
    assert run.status == "done"
    assert [row["clients/completed"] for row in run.rounds[1:]] == [20, 20]
    chosen = {row["client"] for row in run.clients}
    assert len(chosen) == 40
    assert max(chosen) > 500_000
    assert run.rounds[-1]["eval/loss"] < run.rounds[0]["eval/loss"]


def test_both_ways_to_encode_give_the_same_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows at once while the memory budget has room, else each client's."""
    given = millions()
    made = partition.make(given, 0)
    at_once = Worker(Recipe(given, made.ownership, 0)).task
    assert at_once._all_rows is not None
    monkeypatch.setattr(task_module, "CACHE_BYTES", 100)
    one_by_one = Worker(Recipe(given, made.ownership, 0)).task
    assert one_by_one._all_rows is None
    for part in ("train", "test"):
        for client in (0, 999_999):
            ours, theirs = (t.client_data(client, part) for t in (at_once, one_by_one))
            assert ours.keys() == theirs.keys()
            assert all(ours[name].equal(theirs[name]) for name in ours)


def test_clients_that_list_their_rows_are_encoded_one_by_one() -> None:
    given = tiny()
    with InlineGrid(Recipe(given, partition.make(given, 0).ownership, 0)) as grid:
        assert grid.worker.task._all_rows is None
