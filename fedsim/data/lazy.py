"""Partitioners for millions of clients: a client's rows are drawn when they are asked for.

What client ``i`` owns is a pure function of the seed and ``i``: nothing is kept per client, and the
number of clients changes nobody's rows. Within a client all rows differ, and its training and test
rows are disjoint. Across clients rows are **re-used**: each client draws from the whole pool of
training rows, independently of the others, so that a row has many owners once the clients together
want more rows than there are. ``num_clients`` must be given.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveInt

from fedsim.errors import DataError
from fedsim.seeds import Seeds

Indices = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class LazyPartitioner(ABC):
    """How one client's rows are drawn; subclasses are partitioners, also as ``module:Class``.

    Args:
        seed: Fixes the partition, whatever the run's seed.
    """

    seed: NonNegativeInt | None = None

    @property
    @abstractmethod
    def least(self) -> int:
        """Rows that every client has at least."""

    @abstractmethod
    def check(self, sizes: Indices) -> None:
        """Refuse options that ask for more rows than there are, as DataError.

        ``sizes`` counts the rows of the pool by label (the values of ``partition_by``, sorted); it
        has one entry for a partitioner without that option.
        """

    @abstractmethod
    def draw(self, generator: np.random.Generator, sizes: Indices) -> Indices:
        """Distinct rows of one client in random order.

        Rows are counted from 0, one label after the other: label ``k`` has the numbers from
        ``sum(sizes[:k])``.
        """


@dataclass(frozen=True, kw_only=True)
class LazyIid(LazyPartitioner):
    """Clients alike, of equal size, for millions: each draws its rows uniformly from the pool.

    Args:
        rows_per_client: Rows of every client.
        seed: Fixes the partition, whatever the run's seed.
    """

    rows_per_client: PositiveInt = 20

    @property
    def least(self) -> int:
        """All clients have equally many."""
        return self.rows_per_client

    def check(self, sizes: Indices) -> None:
        """A client's rows differ."""
        _check_enough("rows_per_client", self.rows_per_client, sizes)

    def draw(self, generator: np.random.Generator, sizes: Indices) -> Indices:
        """A uniform sample without replacement."""
        return generator.choice(int(sizes.sum()), self.rows_per_client, replace=False)


@dataclass(frozen=True, kw_only=True)
class LazyQuantity(LazyPartitioner):
    """Clients alike but of log-normal sizes, for millions: few have many rows.

    ``ln(rows) ~ Normal(ln(mean_rows) - sigma**2 / 2, sigma)``, then rounded and kept within
    ``min_rows`` and ``max_rows``. As far as few sizes meet these limits, the mean is ``mean_rows``,
    the median ``mean_rows * exp(-sigma**2 / 2)`` and the variance
    ``mean_rows**2 * (exp(sigma**2) - 1)``. Which rows: uniformly from the pool.

    Args:
        min_rows: Smaller clients get this many.
        mean_rows: Mean of the log-normal.
        sigma: Standard deviation of the logarithm; with 0, all clients have ``mean_rows``.
        max_rows: Larger clients get this many; by default all rows of the pool.
        seed: Fixes the partition, whatever the run's seed.
    """

    min_rows: PositiveInt = 1
    mean_rows: Annotated[float, Field(ge=1.0, allow_inf_nan=False)] = 20.0
    sigma: Annotated[float, Field(ge=0.0, le=10.0)] = 1.0
    max_rows: PositiveInt | None = None

    def __post_init__(self) -> None:
        most = math.inf if self.max_rows is None else self.max_rows
        if not self.min_rows <= self.mean_rows <= most:
            raise DataError(
                f"mean_rows is {self.mean_rows:g}, outside min_rows ({self.min_rows}) to "
                f"max_rows ({self.max_rows or 'all'})",
                key=("mean_rows",),
            )

    @property
    def least(self) -> int:
        """The lower limit."""
        return self.min_rows

    def check(self, sizes: Indices) -> None:
        """The limits fit the pool."""
        _check_enough("mean_rows", math.ceil(self.mean_rows), sizes)
        _check_enough("max_rows", self.max_rows or 1, sizes)

    def draw(self, generator: np.random.Generator, sizes: Indices) -> Indices:
        """A log-normal number of rows, then a uniform sample without replacement."""
        pool = int(sizes.sum())
        rows = generator.lognormal(math.log(self.mean_rows) - self.sigma**2 / 2, self.sigma)
        count = round(min(max(rows, self.min_rows), self.max_rows or pool))
        return generator.choice(pool, count, replace=False)


@dataclass(frozen=True, kw_only=True)
class LazyDirichlet(LazyPartitioner):
    """Clients of equal size and unlike labels, for millions: each has its own Dirichlet mix.

    A client's label mix ``p`` is drawn from the symmetric Dirichlet distribution over all ``K``
    labels, ``p ~ Dir(alpha, ..., alpha)``; its numbers of rows are ``Multinomial(n, p)`` with
    ``n = rows_per_client``; which rows of a label: uniformly. So a label's share of a client's rows
    has mean ``1/K`` and variance ``(1/K) (1 - 1/K) (n + K alpha) / (n (1 + K alpha))``. Over all
    clients the labels are equally frequent, whatever their frequency in the pool. (The partitioner
    ``dirichlet`` differs: it splits each label's rows among the clients.)

    Args:
        alpha: Concentration: 0.1 gives most clients one or two labels, 100 gives all the same mix.
        partition_by: Column of the labels.
        rows_per_client: Rows of every client; each label must have at least as many.
        seed: Fixes the partition, whatever the run's seed.
    """

    alpha: Annotated[float, Field(ge=1e-6, le=1e6)]
    partition_by: str
    rows_per_client: PositiveInt = 20

    @property
    def least(self) -> int:
        """All clients have equally many."""
        return self.rows_per_client

    def check(self, sizes: Indices) -> None:
        """A client's rows differ even if all are of the rarest label."""
        _check_enough("rows_per_client", self.rows_per_client, sizes)

    def draw(self, generator: np.random.Generator, sizes: Indices) -> Indices:
        """A label mix, numbers of rows by label, then rows of each label."""
        mix = generator.dirichlet(np.full(len(sizes), self.alpha))
        counts = generator.multinomial(self.rows_per_client, mix)
        rows = np.array(_distinct(generator, sizes, counts), dtype=np.int64)
        generator.shuffle(rows)
        return rows


LAZY: dict[str, type[LazyPartitioner]] = {
    "lazy_dirichlet": LazyDirichlet,
    "lazy_iid": LazyIid,
    "lazy_quantity": LazyQuantity,
}
"""The partitioners of this file by name."""


@dataclass(frozen=True)
class LazyOwned:
    """Row numbers by client, as ``Ragged`` has them, but computed at each access.

    Attributes:
        rows: Row numbers of the pool, by label.
        sizes: Rows of the pool by label.
        test_fraction: Part of each client's rows that its test gets; at least one row, if any.
        part: Which of a client's rows these are.
    """

    partitioner: LazyPartitioner
    rows: Indices = field(repr=False)
    sizes: Indices = field(repr=False)
    num_clients: int
    seeds: Seeds
    test_fraction: float = 0.0
    part: Literal["train", "test"] = "train"

    def __len__(self) -> int:
        return self.num_clients

    def __getitem__(self, client: int) -> Indices:
        if not 0 <= client < self.num_clients:
            raise IndexError(f"there is no client {client}: the clients are 0 to {len(self) - 1}")
        generator = self.seeds.numpy("partition", int(client))
        rows = self.rows[self.partitioner.draw(generator, self.sizes)]
        tests = _num_tests(len(rows), self.test_fraction)
        return rows[tests:] if self.part == "train" else rows[:tests]

    def with_tests(self, fraction: float) -> tuple[LazyOwned, LazyOwned]:
        """Each client's training rows and its test rows.

        Raises:
            DataError: A client may be left without training rows.
        """
        least = self.partitioner.least
        if _num_tests(least, fraction) >= least:
            raise DataError(
                f"a client may own {least} row{'s' if least > 1 else ''} only, and "
                f"client_test_fraction {fraction} leaves it none to train on",
                key=("data", "client_test_fraction"),
                hint="Lower the fraction, or raise the partitioner's number of rows",
            )
        train = replace(self, test_fraction=fraction)
        return train, replace(train, part="test")


def _num_tests(rows: int, fraction: float) -> int:
    return max(1, round(fraction * rows)) if fraction else 0


def _check_enough(option: str, wanted: int, sizes: Indices) -> None:
    if wanted > sizes.min():
        there = f"a label has only {sizes.min()}" if len(sizes) > 1 else f"there are {sizes[0]}"
        raise DataError(
            f"{option} is {wanted}, but {there} training rows",
            key=(option,),
            hint="A client's rows all differ: lower the option, or use more data",
        )


def _distinct(generator: np.random.Generator, sizes: Indices, counts: Indices) -> list[int]:
    """Uniform samples of ``counts[k]`` out of ``sizes[k]`` numbers (Floyd's algorithm).

    One plain loop over all labels takes a tenth of the time of ``Generator.choice`` for each.
    """
    uniform = iter(generator.random(int(counts.sum())).tolist())
    chosen: set[int] = set()
    labels = np.flatnonzero(counts)
    ends = np.cumsum(sizes)[labels]
    for end, size, count in zip(
        ends.tolist(), sizes[labels].tolist(), counts[labels].tolist(), strict=True
    ):
        for last in range(end - count, end):
            row = end - size + int(next(uniform) * (last - end + size + 1))
            chosen.add(last if row in chosen else row)
    return list(chosen)
