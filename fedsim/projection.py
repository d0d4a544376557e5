"""Updates as coordinates in random bases: what Ferret's two sides agree on.

The parameters are cut into blocks of whole tensors. Block l has d_l values and up to K basis
vectors v_{k,l}, normals cut at +-1/sqrt(d_l), which both sides make from a seed. An update Delta is
sent as gamma_k = <Delta_l, v_{k,l}> for K_l random k, and

    Delta~_l = scale_l / K_l * sum_k gamma_k v_{k,l}

is unbiased with scale_l = 1 / rho_l, where rho_l, about 1 / (3 d_l), is the variance of an entry.
The published code takes scale_l = d_l, which makes a third of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedsim.arrays import Arrays
from fedsim.directions import VERSION, Directions, Target, num_values, truncated_variance
from fedsim.errors import ClientError, RunError
from fedsim.seedpool import check_unsigned, check_version, finite_in_float32, unsigned

Scale = Literal["paper", "code"]
BASIS, COUNTS, INDICES, COORDINATES, ORIGIN = "basis", "counts", "indices", "coordinates", "origin"
"""Vectors in messages."""
WEIGHTS, SEEDS, PLACES, COEFFICIENTS = "weights", "seeds", "places", "coefficients"
SIZES = "sizes"
_SCALES: tuple[Scale, ...] = ("paper", "code")


@dataclass(frozen=True)
class Basis:
    """K basis vectors for each block of a model.

    Args:
        seed: What all vectors come from.
        size: Vectors for the block with the largest update, K.
        scale: See the module.
    """

    seed: int
    size: int
    scale: Scale = "paper"

    def message(self) -> Arrays:
        """The basis as a vector."""
        numbers = [self.seed, self.size, _SCALES.index(self.scale), VERSION]
        return {BASIS: np.array(numbers, np.uint64)}

    @classmethod
    def of(cls, received: Mapping[str, NDArray[Any]]) -> Basis:
        """The basis that a message speaks of.

        Raises:
            RunError: It speaks of none, or of one of another version.
        """
        if BASIS not in received or len(received[BASIS]) != 4:
            raise RunError(
                "the message speaks of no basis", hint="Use the strategy ferret with ferret"
            )
        seed, size, scale, version = (int(x) for x in received[BASIS])
        check_version(version)
        if not size or scale >= len(_SCALES):
            raise RunError(f"the message's basis has {size} vectors of scale {scale}")
        return cls(seed, size, _SCALES[scale])

    def project(self, block: Target, number: int, chosen: Sequence[int]) -> NDArray[np.float64]:
        """Coordinates of a block along chosen vectors."""
        return self._directions(block, number).dot(block, self._seeds(chosen))

    def add(
        self, block: Arrays, number: int, coefficients: NDArray[np.float64], threads: int = 1
    ) -> None:
        """``block += sum_k coefficient_k v_k`` in place; zeros cost nothing."""
        used = np.flatnonzero(coefficients)
        directions = self._directions(block, number, threads)
        directions.accumulate(block, self._seeds(used.tolist()), coefficients[used].tolist())

    def factor(self, size: int, count: int) -> float:
        """What coordinates of ``count`` vectors are multiplied by in a block of ``size`` values."""
        scale = 1 / truncated_variance(size) if self.scale == "paper" else size
        return scale / count

    def _seeds(self, chosen: Sequence[int]) -> list[int]:
        return [(self.seed + k) % 2**64 for k in chosen]

    def _directions(self, block: Target, number: int, threads: int = 1) -> Directions:
        return Directions(num_values(block), "truncated", stream=number + 1, threads=threads)


def cut(arrays: Mapping[str, NDArray[Any]]) -> list[list[str]]:
    """Names of the tensors of each block, as the published code cuts.

    A block is closed before it would outgrow 0.9 of the median tensor.

    >>> cut({"a": np.zeros(10), "b": np.zeros(2), "c": np.zeros(3), "d": np.zeros(40)})
    [['a'], ['b', 'c'], ['d']]
    """
    limit = 0.9 * float(np.median([x.size for x in arrays.values()]))
    blocks: list[list[str]] = []
    filled = math.inf
    for name, x in arrays.items():
        if filled + x.size > limit:
            blocks.append([])
            filled = 0
        blocks[-1].append(name)
        filled += x.size
    return blocks


def allocate(norms: Sequence[float], size: int) -> list[int]:
    """Vectors for each block: ``size`` for the largest norm, in proportion, at least two.

    >>> allocate([4, 2, 0.01], 100)
    [100, 50, 2]
    """
    largest = max(norms) or 1.0
    return [min(size, max(2, math.floor(size * norm / largest))) for norm in norms]


def choose(origin: int, number: int, count: int, size: int) -> NDArray[np.intp]:
    """Which vectors a block uses: distinct, in order, a function of the client's ``origin``."""
    bits = np.random.Philox(key=np.array([origin, 2**63 + number], np.uint64))
    order = np.argsort(bits.random_raw(size), kind="stable")
    return np.sort(order[:count])


def unit(dtype: np.dtype[Any], size: int) -> float:
    """What coordinates in a block of ``size`` values travel in units of: sqrt(rho) in float16.

    They are then as large as the update, however large the block; float16 ends at 6e-8.
    """
    return math.sqrt(truncated_variance(size)) if dtype == np.float16 else 1.0


def coefficients(
    update: Mapping[str, NDArray[Any]], basis: Basis, sizes: Sequence[int]
) -> NDArray[np.float64]:
    """A client's update as one scaled coefficient for each block and vector, mostly 0.

    Raises:
        ClientError: The vectors do not belong together, an index is outside the basis, or a
            coefficient is more than float32 holds.
    """
    check_unsigned(update, COUNTS, INDICES, ORIGIN)
    counts = update.get(COUNTS, np.zeros(0, np.uint8))
    sent = update.get(COORDINATES, np.zeros(0, np.float32))
    values = sent.astype(np.float64)
    fits = len(counts) == len(sizes) and counts.max(initial=0) <= basis.size
    if not fits or counts.sum() != len(values):
        raise ClientError(
            f"the update's vectors do not fit {len(sizes)} blocks of up to {basis.size} vectors"
        )
    if not np.isfinite(values).all():
        raise ClientError("the update's coordinates hold NaN or infinity")
    result = np.zeros((len(sizes), basis.size))
    start = 0
    for number, (size, count) in enumerate(zip(sizes, counts.tolist(), strict=True)):
        chosen = _chosen(update, basis, number, start, count)
        part = values[start : start + count] * unit(sent.dtype, size)
        result[number, chosen] = part * basis.factor(size, max(1, count))
        start += count
    if not finite_in_float32(result):
        raise ClientError("the update's coordinates are more than float32 holds")
    return result


def _chosen(
    update: Mapping[str, NDArray[Any]], basis: Basis, number: int, start: int, count: int
) -> NDArray[np.intp]:
    if ORIGIN in update and len(update[ORIGIN]) == 1:
        return choose(int(update[ORIGIN][0]), number, count, basis.size)
    chosen = update.get(INDICES, np.zeros(0, np.uint8))[start : start + count]
    if len(chosen) != count or np.any(chosen >= basis.size) or len(set(chosen.tolist())) != count:
        raise ClientError(f"the update's indices do not fit a basis of {basis.size} vectors")
    return chosen.astype(np.intp)


@dataclass(frozen=True)
class Step:
    """What the server subtracted in one round: a sum over one or several bases."""

    seeds: tuple[int, ...]
    coefficients: NDArray[np.float32]  # (bases, blocks, vectors)

    def apply(self, weights: Arrays, blocks: Sequence[Sequence[str]], threads: int = 1) -> None:
        """``w -= sum c v`` in place."""
        for seed, table in zip(self.seeds, self.coefficients, strict=True):
            basis = Basis(seed, table.shape[1])
            for number, names in enumerate(blocks):
                block = {name: weights[name] for name in names}
                basis.add(block, number, -table[number].astype(np.float64), threads)


def pack_steps(steps: Sequence[Step]) -> Arrays:
    """Several rounds in one message: seeds, and what is not 0 with its place."""
    seeds = [seed for step in steps for seed in step.seeds]
    tables = [table for step in steps for table in step.coefficients]
    flat = np.concatenate([t.ravel() for t in tables]) if tables else np.zeros(0, np.float32)
    used = np.flatnonzero(flat)
    return {
        SEEDS: np.array(seeds, np.uint64),
        PLACES: unsigned(used, max(1, len(flat))),
        COEFFICIENTS: flat[used],
    }


def unpack_steps(received: Mapping[str, NDArray[Any]], blocks: int, size: int) -> Step:
    """The sum of all rounds of a message.

    Raises:
        RunError: The vectors do not belong together.
    """
    seeds, places = received[SEEDS], received[PLACES].astype(np.intp)
    flat = np.zeros(len(seeds) * blocks * size, np.float32)
    if len(places) != len(received[COEFFICIENTS]) or np.any(places >= len(flat)):
        raise RunError("the message's coefficients do not fit its seeds and blocks")
    flat[places] = received[COEFFICIENTS]
    return Step(tuple(int(s) for s in seeds), flat.reshape(len(seeds), blocks, size))
