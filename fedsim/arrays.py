"""Arithmetic on ``Arrays``: plain ``dict[str, numpy.ndarray]``, the only numeric hand-over.

Every function keeps names, order, shapes and dtypes, and returns new arrays unless it says so.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import PayloadError

Arrays = dict[str, NDArray[Any]]
"""Named arrays; insertion order is the layout."""


def subtract(a: Mapping[str, NDArray[Any]], b: Mapping[str, NDArray[Any]]) -> Arrays:
    """``a - b``, name by name."""
    return {name: np.asarray(a[name] - b[name]) for name in a}


def add(a: Mapping[str, NDArray[Any]], b: Mapping[str, NDArray[Any]]) -> Arrays:
    """``a + b``, name by name."""
    return {name: np.asarray(a[name] + b[name]) for name in a}


def scale(a: Mapping[str, NDArray[Any]], factor: float) -> Arrays:
    """``factor * a``, in each array's own dtype."""
    return {name: np.asarray(x * x.dtype.type(factor)) for name, x in a.items()}


def conform(arrays: Mapping[str, NDArray[Any]], like: Mapping[str, NDArray[Any]]) -> Arrays:
    """``arrays`` in the order and dtypes of ``like``: some stock strategies answer in float64.

    Raises:
        PayloadError: Names or shapes differ.
    """
    if arrays.keys() != like.keys():
        raise PayloadError(f"arrays have other names: {sorted(set(arrays) ^ set(like))[:3]}")
    for name, x in like.items():
        if arrays[name].shape != x.shape:
            raise PayloadError(f"array {name} has shape {arrays[name].shape}, not {x.shape}")
    return {name: arrays[name].astype(x.dtype, copy=False) for name, x in like.items()}


SQUARES = 1024
"""Numbers whose squares are added in their own precision; BLAS takes no second thread for so few,
hence the same bits in any process."""


def norm(arrays: Mapping[str, NDArray[Any]]) -> float:
    """L2 norm over all arrays, in stretches of ``SQUARES`` numbers that are added in float64.

    >>> norm({"a": np.float32([3.0]), "b": np.float32([[4.0]])})
    5.0
    """
    return math.sqrt(math.fsum(map(_square, arrays.values())))


def distance(a: Mapping[str, NDArray[Any]], b: Mapping[str, NDArray[Any]]) -> float:
    """L2 norm of ``a - b``, with no copy of more than one array."""
    return math.sqrt(math.fsum(_square(np.subtract(x, b[name])) for name, x in a.items()))


def _square(x: NDArray[Any]) -> float:
    flat = x.reshape(-1) if x.dtype.char in "fd" else x.reshape(-1).astype(np.float64)
    whole = flat.size - flat.size % SQUARES
    rows, rest = flat[:whole].reshape(-1, SQUARES), flat[whole:]
    with np.errstate(over="ignore"):
        total = float(np.vecdot(rows, rows).sum(dtype=np.float64)) if whole else 0.0
        return total + float(np.vecdot(rest, rest))


class WeightedMean:
    """Streaming weighted mean in a fixed order of summation; memory does not grow.

    >>> mean = WeightedMean()
    >>> mean.update({"w": np.float32([0.0])}, 1.0)
    >>> mean.update({"w": np.float32([3.0])}, 2.0)
    >>> mean.result()["w"].tolist(), mean.weight
    ([2.0], 3.0)
    """

    def __init__(self) -> None:
        self.weight = 0.0
        self._sum: Arrays = {}
        self._term: Arrays = {}

    def update(self, arrays: Mapping[str, NDArray[Any]], weight: float) -> None:
        """Add one contribution of the given weight."""
        if not self._sum:
            self._sum = scale(arrays, weight)
            self._term = {name: np.empty_like(x) for name, x in self._sum.items()}
        else:
            if arrays.keys() != self._sum.keys():
                raise PayloadError("updates of one round have different array names")
            for name, x in arrays.items():
                np.multiply(x, x.dtype.type(weight), out=self._term[name])
                self._sum[name] += self._term[name]
        self.weight += weight

    def result(self) -> Arrays:
        """The mean of what was added; requires a positive total weight."""
        return scale(self._sum, 1.0 / self.weight)


def non_finite(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Name of the first array that holds a NaN or an infinity, or the empty string."""
    return next((name for name, x in arrays.items() if not np.isfinite(x).all()), "")


def misfit(arrays: Mapping[str, Any], like: Mapping[str, NDArray[Any]]) -> str:
    """In words, the first way in which names, shapes or dtypes differ; empty where they do not.

    >>> misfit({"w": np.zeros(2)}, {"w": np.zeros(3)})
    'w is float64 (2,), not float64 (3,)'
    """
    if arrays.keys() != like.keys():
        return f"array names differ: {sorted(set(arrays) ^ set(like))[:3]}"
    for name, x in arrays.items():
        if not isinstance(x, np.ndarray):
            return f"{name} is a {type(x).__name__}, not an array"
        if x.shape != like[name].shape or x.dtype != like[name].dtype:
            return f"{name} is {x.dtype} {x.shape}, not {like[name].dtype} {like[name].shape}"
    return ""


def layout_digest(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Four bytes that identify names, dtypes and shapes (not values)."""
    text = "\n".join(f"{name} {x.dtype.str} {x.shape}" for name, x in arrays.items())
    return hashlib.blake2b(text.encode(), digest_size=4).digest()


def sha256(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Hex digest of names and values, in name order; equal bits give equal digests."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        x = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {x.dtype.str} {x.shape}\n".encode())
        digest.update(x.tobytes())
    return digest.hexdigest()


def num_bytes(arrays: Iterable[NDArray[Any]]) -> int:
    """Bytes of the raw values."""
    return sum(x.nbytes for x in arrays)
