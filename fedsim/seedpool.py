"""A pool of seeds, and models that are sums over it: what FedKSeed's two sides agree on.

    w = w0 - eta * sum_k G_k z(s_k)

``w0`` is the model everybody starts from, ``s_1 .. s_K`` are drawn from one master seed, and the
accumulators ``G`` are all that a model differs by. A client that knows ``w0`` needs nothing else,
however many rounds it missed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args

import numpy as np
import xxhash
from numpy.typing import NDArray

from fedsim.arrays import Arrays
from fedsim.directions import VERSION, Directions, Kind, Target, num_values
from fedsim.errors import ClientError, RunError

SEEDS, SCALARS, ACCUMULATORS, PROBABILITIES = "seeds", "scalars", "accumulators", "probabilities"
"""Vectors in messages."""
DRAWS = "draws"
"""How often each seed was drawn, beside the sums of a block of clients; never travels."""
CHANGED = "changed"
"""Positions in the pool that the accumulators of a partial message belong to."""
_POOL, _ETA = "pool", "eta"
_KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class SeedPool:
    """The seeds of a run and what they mean.

    Args:
        master: The seed that all others come from, 0 to 2^63 - 1.
        size: Seeds in the pool.
        eta: Step size, the same in all rounds and on all clients.
        kind: Distribution of the directions.
        start: ``fingerprint`` of the model that the sums are added to.
    """

    master: int
    size: int
    eta: float
    kind: Kind
    start: int

    @cached_property
    def seeds(self) -> list[int]:
        """The pool: distinct 64-bit seeds."""
        bits = np.random.Philox(key=np.array([self.master, 2**64 - 1], np.uint64))
        words = bits.random_raw(2 * self.size).tolist()
        return list(dict.fromkeys(words))[: self.size]

    def message(self, accumulators: NDArray[np.float32]) -> Arrays:
        """What a client needs to rebuild the model: all accumulators, or those that are not 0."""
        used = np.flatnonzero(accumulators)
        return {**self._setting(), **_shorter(accumulators, used)}

    def changes(self, accumulators: NDArray[np.float32], changed: NDArray[np.intp]) -> Arrays:
        """What a client needs that knows the accumulators except the ``changed`` ones."""
        return {**self._setting(), **_shorter(accumulators, changed)}

    def _setting(self) -> Arrays:
        numbers = [self.master, self.size, _KINDS.index(self.kind), self.start, VERSION]
        return {_POOL: np.array(numbers, np.uint64), _ETA: np.array([self.eta])}

    @classmethod
    def of(cls, received: Mapping[str, NDArray[Any]]) -> SeedPool:
        """The pool that a message speaks of.

        Raises:
            RunError: It is no such message, or one of another version of the directions.
        """
        if _POOL not in received or len(received[_POOL]) != 5 or len(received.get(_ETA, ())) != 1:
            raise RunError(
                "the message speaks of no seed pool", hint="Use the strategy fedkseed with kseed"
            )
        master, size, kind, start, version = (int(x) for x in received[_POOL])
        check_version(version)
        if not size or kind >= len(_KINDS):
            raise RunError(f"the seed pool of the message has {size} seeds of kind {kind}")
        return cls(master, size, float(received[_ETA][0]), _KINDS[kind], start)

    def accumulators(self, received: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """The accumulators of a message, those that it leaves out as 0.

        Raises:
            RunError: They do not fit the pool.
        """
        values, places = received.get(ACCUMULATORS), received.get(CHANGED)
        full = np.zeros(self.size, np.float32)
        index = np.arange(self.size) if places is None else places.astype(np.intp)
        if values is None or len(values) != len(index) or np.any(index >= self.size):
            raise RunError(f"the message's accumulators do not fit a pool of {self.size} seeds")
        full[index] = values
        return full

    def check_start(self, start: int) -> None:
        """Refuse sums that belong to an initial model of another ``fingerprint``.

        Raises:
            RunError: The fingerprints differ.
        """
        if start != self.start:
            raise RunError(
                "the accumulators belong to a run with other initial weights",
                hint="Did the model's files, the scenario or a library change? Start the run anew",
            )

    def move(
        self, weights: Target, difference: NDArray[np.floating[Any]], threads: int = 1
    ) -> None:
        """``w -= eta * sum_k difference_k z_k`` in place; zeros cost nothing."""
        used = np.flatnonzero(difference)
        directions = Directions(num_values(weights), self.kind, threads=threads)
        scales = -self.eta * difference[used].astype(np.float64)
        directions.accumulate(weights, [self.seeds[k] for k in used], scales.tolist())

    def rebuild(
        self,
        start: Mapping[str, NDArray[Any]],
        accumulators: NDArray[np.float32],
        threads: int = 1,
    ) -> Arrays:
        """The model that accumulators stand for."""
        weights = {name: np.array(x, order="C") for name, x in start.items()}
        self.move(weights, accumulators, threads)
        return weights

    def dense(self, update: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
        """A client's update as one sum for each seed.

        Raises:
            ClientError: A seed is not in the pool, a scalar is missing or not finite, or their sum
                is not.
        """
        self.check(update)
        if ACCUMULATORS in update:
            sums = update[ACCUMULATORS].astype(np.float64)
        else:
            sums = np.zeros(self.size)
            np.add.at(sums, update[SEEDS].astype(np.intp), update[SCALARS].astype(np.float64))
        if not finite_in_float32(sums):
            raise ClientError("the update's scalars add up to more than float32 holds")
        return sums

    def draws(self, update: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
        """How often a client used each seed; NaN where it sent sums, which do not say."""
        if SEEDS not in update:
            return np.full(self.size, np.nan)
        return np.bincount(update[SEEDS].astype(np.intp), minlength=self.size).astype(np.float64)

    def check(self, update: Mapping[str, NDArray[Any]]) -> None:
        """Refuse an update that is not a list of seeds and scalars of this pool.

        Raises:
            ClientError: Vectors are missing, a seed is outside the pool, a scalar is not finite.
        """
        if update.keys() == {ACCUMULATORS}:
            fits = len(update[ACCUMULATORS]) == self.size
        else:
            fits = update.keys() == {SEEDS, SCALARS}
            fits = fits and len(update[SEEDS]) == len(update[SCALARS])
        if not fits:
            raise ClientError(
                f"the update's vectors {sorted(update)} do not fit a pool of {self.size} seeds",
                allowed=f"'{SEEDS}' and '{SCALARS}' of one length, or '{ACCUMULATORS}' of all",
            )
        check_unsigned(update, SEEDS)
        seeds = update.get(SEEDS, np.zeros(0, np.uint16))
        if outside := seeds[seeds >= self.size].tolist():
            raise ClientError(f"seed {outside[0]} is outside the pool of {self.size}")
        for name, x in update.items():
            if not np.isfinite(x).all():
                raise ClientError(f"the update's {name} hold NaN or infinity")


def check_version(version: int) -> None:
    """Refuse sums of directions that this release makes otherwise.

    Raises:
        RunError: The version differs.
    """
    if version != VERSION:
        raise RunError(
            f"the directions are of version {version}; this fedsim makes version {VERSION}",
            hint="Go on with the release that began the run",
        )


def check_unsigned(update: Mapping[str, NDArray[Any]], *names: str) -> None:
    """Refuse seeds, counts and places that are no unsigned integers.

    Raises:
        ClientError: With the name of the vector.
    """
    for name in names:
        if name in update and (update[name].dtype.kind != "u" or update[name].ndim != 1):
            raise ClientError(f"the update's {name} are no list of unsigned integers")


def finite_in_float32(sums: NDArray[np.float64]) -> bool:
    """Whether float32 holds all of them."""
    return bool((np.abs(sums) <= np.finfo(np.float32).max).all())


def fingerprint(arrays: Mapping[str, NDArray[Any]]) -> int:
    """64 bits that identify a model: names, shapes and values."""
    digest = xxhash.xxh3_64()
    for name, x in arrays.items():
        digest.update(f"{name} {x.dtype.str} {x.shape}\n".encode())
        digest.update(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data)
    return digest.intdigest()


def effective(weights: NDArray[Any]) -> float:
    """The exponential of the entropy: how many seeds are in use, if all were used alike.

    >>> effective(np.array([2.0, 2.0, 0.0, 0.0]))
    2.0
    """
    shares = weights[weights > 0] / weights.sum(dtype=np.float64)
    return float(np.exp(-(shares * np.log(shares)).sum()))


def tenths(draws: NDArray[np.float64]) -> list[float]:
    """Share of all draws that fell on each tenth of the pool, the most drawn seeds first.

    >>> tenths(np.array([1.0, 3, 0, 0, 0, 0, 0, 0, 0, 0]))
    [0.75, 0.25, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    """
    parts = np.array_split(np.sort(draws)[::-1], 10)
    total = draws.sum()
    return [round(float(part.sum() / total), 6) for part in parts]


def unsigned(values: Sequence[int] | NDArray[Any], below: int) -> NDArray[Any]:
    """Integers in the smallest unsigned dtype for values below a bound."""
    return np.asarray(values, dtype=np.min_scalar_type(max(1, below - 1)))


def _shorter(accumulators: NDArray[np.float32], places: NDArray[np.intp]) -> Arrays:
    """All accumulators, or some with their places, whichever takes fewer bits."""
    bits = max(1, (len(accumulators) - 1).bit_length())
    if len(places) * (32 + bits) >= len(accumulators) * 32:
        return {ACCUMULATORS: accumulators}
    return {
        CHANGED: unsigned(places, len(accumulators)),
        ACCUMULATORS: accumulators[places],
    }
