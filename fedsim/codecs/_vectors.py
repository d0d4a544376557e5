"""Between named arrays and flat vectors, and between types of values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.arrays import Arrays
from fedsim.codec import Rest
from fedsim.errors import PayloadError

Vector = NDArray[Any]


def common_dtype(arrays: Arrays) -> np.dtype[Any]:
    """The type that holds the values of all arrays."""
    return np.result_type(*(x.dtype for x in arrays.values())) if arrays else np.dtype(np.float32)


def total_size(arrays: Arrays) -> int:
    """Number of values in all arrays."""
    return sum(x.size for x in arrays.values())


def flatten(arrays: Arrays) -> Vector:
    """All values as one vector, in the order of the layout."""
    flat = [np.ascontiguousarray(x).reshape(-1) for x in arrays.values()]
    return flat[0] if len(flat) == 1 else np.concatenate(flat) if flat else np.zeros(0, np.float32)


def unflatten(vector: Vector, like: Arrays) -> Arrays:
    """The inverse of ``flatten``, in the types of ``like``."""
    result: Arrays = {}
    offset = 0
    for name, x in like.items():
        result[name] = narrow(vector[offset : offset + x.size], x.dtype).reshape(x.shape)
        offset += x.size
    return result


def wide(x: Vector) -> Vector:
    """A flat view or copy to compute with: float64 stays, anything narrower is float32."""
    dtype = np.float64 if x.dtype == np.float64 else np.float32
    return np.ascontiguousarray(x, dtype=dtype).reshape(-1)


def wide_dtype(x: Vector) -> np.dtype[Any]:
    """The type that ``wide`` computes in."""
    return np.dtype(np.float64 if x.dtype == np.float64 else np.float32)


def narrow(x: Vector, dtype: np.dtype[Any]) -> Vector:
    """Values in another floating type; those beyond its range become its largest."""
    if dtype.itemsize < x.dtype.itemsize:
        limit = np.finfo(dtype).max
        x = np.clip(x, -limit, limit)
    return x.astype(dtype, copy=False)


def unpack_each(like: Arrays, rest: Rest, read: Callable[[Vector], Vector]) -> Arrays:
    """Arrays of which ``read`` gives the values one by one; later codecs have nothing left."""
    result = {name: np.zeros_like(x) for name, x in like.items()}
    for name, x in filled(like):
        result[name] = narrow(read(x).reshape(-1)[: x.size], x.dtype).reshape(x.shape)
    rest({})
    return result


def filled(arrays: Arrays) -> Iterator[tuple[str, Vector]]:
    """Names and arrays that hold any value."""
    return ((name, x) for name, x in arrays.items() if x.size)


def finite_scale(value: Any, what: str) -> Any:
    """A scale that must not have overflowed.

    Raises:
        PayloadError: It is not finite.
    """
    if not np.isfinite(value).all():
        raise PayloadError(f"values are too large: their {what} is not finite")
    return value
