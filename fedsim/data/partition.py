"""Who owns which rows: the test set, the server's public part, and each client.

``make`` decides it once per run, from named streams of the run's seed; the answer (``Ownership``)
is a handful of integer arrays that travel to the workers, which ``bind`` it to rows they load
themselves. Clients' rows are listed (``Ragged``) or, for large populations, drawn when they are
asked for (``LazyOwned``).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from fedsim.data import partitioners
from fedsim.data.lazy import LazyOwned, LazyPartitioner
from fedsim.data.names import available
from fedsim.data.partitioners import check, find
from fedsim.data.sources import Rows, load_rows
from fedsim.errors import DataError
from fedsim.loading import loading
from fedsim.scenario import Scenario
from fedsim.seeds import Seeds

if TYPE_CHECKING:
    from datasets import Dataset

    from fedsim.data.owned import Table

__all__ = ["Ownership", "Ragged", "Split", "available", "bind", "check", "find", "make"]

Part = Literal["train", "test"]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Ragged:
    """Lists of row numbers, one per client, end to end: ``indices[offsets[i]:offsets[i + 1]]``."""

    indices: Indices
    offsets: Indices

    @classmethod
    def of(cls, lists: list[Indices]) -> Ragged:
        """Join one list per client."""
        return cls.cut(np.concatenate(lists), np.array([len(rows) for rows in lists]))

    @classmethod
    def cut(cls, indices: Indices, sizes: NDArray[np.int64]) -> Ragged:
        """Cut joined lists of the given sizes."""
        return cls(indices, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, client: int) -> Indices:
        if not 0 <= client < len(self):
            raise IndexError(f"there is no client {client}: the clients are 0 to {len(self) - 1}")
        return self.indices[self.offsets[client] : self.offsets[client + 1]]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Rows by client."""
        return np.diff(self.offsets)


Owned = Ragged | LazyOwned
"""Row numbers by client: ``len`` and ``[client]``."""


@dataclass(frozen=True)
class Ownership:
    """Row numbers of the training rows, by owner; it travels cheaply.

    Attributes:
        train: Rows that each client trains on.
        client_test: Rows that each client keeps for its own test; empty without
            ``data.client_test_fraction``.
        public: Rows of the server, for ``model.warm_start``.
        test: Rows of the global test set.
        test_held_out: Whether ``test`` counts training rows; otherwise rows of the test split.
        num_rows: Training rows and test rows that the source had.
    """

    train: Owned
    client_test: Owned
    public: Indices
    test: Indices
    test_held_out: bool
    num_rows: tuple[int, int]


@dataclass(frozen=True)
class Split:
    """Rows and who owns them."""

    rows: Rows
    ownership: Ownership

    @property
    def num_clients(self) -> int:
        """Clients that own rows."""
        return len(self.ownership.train)

    @cached_property
    def train(self) -> Dataset:
        """All training rows, without those held out for the global test."""
        if not self.ownership.test_held_out:
            return self.rows.train
        rest = np.setdiff1d(np.arange(len(self.rows.train)), self.ownership.test)
        return self.rows.train.select(rest)

    @cached_property
    def test(self) -> Dataset:
        """The global test set."""
        if not self.ownership.test_held_out:
            assert self.rows.test is not None
            return self.rows.test
        return self.rows.train.select(self.ownership.test)

    @cached_property
    def public(self) -> Dataset:
        """Rows that the server may train on; no client owns them."""
        return self.rows.train.select(self.ownership.public)

    @property
    def shares_rows(self) -> bool:
        """Whether a row may have several owners, so that it pays to encode each row but once."""
        return isinstance(self.ownership.train, LazyOwned)

    def client_indices(self, client: int, part: Part = "train") -> Indices:
        """The numbers of a client's rows in ``rows.train``."""
        owned = self.ownership.train if part == "train" else self.ownership.client_test
        return owned[client]

    def client_rows(self, client: int, part: Part = "train") -> Dataset:
        """The rows of a client."""
        return self._table.pick(self.client_indices(client, part))

    @cached_property
    def _table(self) -> Table:
        from fedsim.data.owned import Table

        return Table(self.rows.train)

    def num_examples(self, client: int, part: Part = "train") -> int:
        """How many rows a client has."""
        return len(self.client_indices(client, part))


@loading()
def make(scenario: Scenario, seed: int) -> Split:
    """Load the rows of a scenario and decide who owns them.

    Raises:
        DataError: The rows cannot be loaded, or the split is impossible.
    """
    seeds = Seeds(seed)
    rows = load_rows(scenario.data)
    pool = np.arange(len(rows.train))
    pool, test = _hold_out_test(scenario, rows, pool, seeds)
    pool, public = _take_public(scenario, pool, seeds)
    train, client_test = _owners(scenario, rows.train, pool, seeds)
    sizes = (len(rows.train), len(rows.test) if rows.test else 0)
    return Split(rows, Ownership(train, client_test, public, test, rows.test is None, sizes))


def bind(scenario: Scenario, ownership: Ownership) -> Split:
    """Load the rows again and bind them to an ownership made elsewhere.

    Raises:
        DataError: The rows cannot be loaded, or there are not as many as before.
    """
    rows = load_rows(scenario.data)
    sizes = (len(rows.train), len(rows.test) if rows.test else 0)
    if sizes != ownership.num_rows:
        raise DataError(
            f"the data changed: it had {ownership.num_rows} rows (train, test) and has {sizes}",
            key=("data", "path"),
            hint="Keep files unchanged during a run, and let module:function give equal rows",
        )
    return Split(rows, ownership)


def _hold_out_test(
    scenario: Scenario, rows: Rows, pool: Indices, seeds: Seeds
) -> tuple[Indices, Indices]:
    if rows.test is not None:
        return pool, np.arange(len(rows.test))
    fraction = scenario.data.test_fraction
    if not fraction:
        raise DataError(
            f"there are no test rows: the data has no split '{scenario.data.test_split}' "
            "and test_fraction is 0",
            key=("data", "test_fraction"),
            hint="Set data.test_fraction above 0, or data.test_split",
        )
    return _draw(pool, fraction, seeds.numpy("test_split"), ("data", "test_fraction"))


def _take_public(scenario: Scenario, pool: Indices, seeds: Seeds) -> tuple[Indices, Indices]:
    warm_start = scenario.model.warm_start
    if warm_start is None:
        return pool, np.array([], dtype=np.int64)
    key = ("model", "warm_start", "fraction")
    return _draw(pool, warm_start.fraction, seeds.numpy("public"), key)


def _draw(
    pool: Indices, fraction: float, generator: np.random.Generator, key: tuple[str, ...]
) -> tuple[Indices, Indices]:
    """Split off a random part of at least one row; returns the rest and the part, sorted."""
    count = max(1, round(fraction * len(pool)))
    if count >= len(pool):
        raise DataError(
            f"{count} of {len(pool)} training rows would be taken, which leaves the clients none",
            key=key,
            hint="Lower the fraction, or use more data",
        )
    order = generator.permutation(len(pool))
    return pool[np.sort(order[count:])], pool[np.sort(order[:count])]


def _owners(scenario: Scenario, train: Dataset, pool: Indices, seeds: Seeds) -> tuple[Owned, Owned]:
    """Each client's training rows and its test rows."""
    plugin, num_clients = scenario.data.partitioner, scenario.num_clients
    if issubclass(find(plugin.name), LazyPartitioner):
        drawn = partitioners.assign_lazily(plugin, num_clients, train, pool, seeds)
        return drawn.with_tests(scenario.data.client_test_fraction)
    listed = Ragged.of(partitioners.assign(plugin, num_clients, train, pool, seeds))
    _check_clients(scenario, listed)
    return _client_tests(scenario, listed, seeds)


def _check_clients(scenario: Scenario, owned: Ragged) -> None:
    empty = np.flatnonzero(owned.sizes == 0)
    if len(empty):
        more = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
        raise DataError(
            f"client {empty[0]}{more} would own no rows",
            key=partitioners.KEY,
            hint="Try fewer clients or other options of the partitioner "
            "(a larger alpha, or min_partition_size above 0, where it has them)",
        )
    if scenario.clients_per_round and scenario.clients_per_round > len(owned):
        raise DataError(
            f"clients_per_round is {scenario.clients_per_round}, but the data has only "
            f"{len(owned)} clients",
            key=("clients_per_round",),
        )


def _client_tests(scenario: Scenario, owned: Ragged, seeds: Seeds) -> tuple[Ragged, Ragged]:
    """Split each client's rows into its training and its test rows; at least one each."""
    fraction = scenario.data.client_test_fraction
    if not fraction:
        nothing = np.array([], dtype=np.int64)
        return owned, Ragged.cut(nothing, np.zeros(len(owned), dtype=np.int64))
    tests = np.maximum(1, np.round(fraction * owned.sizes)).astype(np.int64)
    short = np.flatnonzero(tests >= owned.sizes)
    if len(short):
        rows = owned.sizes[short[0]]
        raise DataError(
            f"client {short[0]} owns {rows} row{'s' if rows > 1 else ''}, and "
            f"client_test_fraction {fraction} leaves it none to train on",
            key=("data", "client_test_fraction"),
            hint="Lower the fraction, or use fewer clients so that each owns more rows",
        )
    client = np.repeat(np.arange(len(owned)), owned.sizes)
    keys = seeds.numpy("client_test").random(len(client))
    order = np.lexsort((keys, client))  # random within each client
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order)) - owned.offsets[client]
    kept = rank < tests[client]
    return (
        Ragged.cut(owned.indices[~kept], owned.sizes - tests),
        Ragged.cut(owned.indices[kept], tests),
    )
