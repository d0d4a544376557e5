"""What sparsifiers share: choose positions, write them, hand on the values there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.arrays import Arrays
from fedsim.codec import Reader, Rest, Writer
from fedsim.codecs._indices import read_indices, write_indices
from fedsim.codecs._vectors import common_dtype, flatten, total_size, unflatten

Vector = NDArray[Any]
TOGETHER = "all"
"""Name of the one vector when arrays are not taken one by one."""


def num_kept(density: float, size: int) -> int:
    """How many of ``size`` entries a density keeps: at least one, where there is any."""
    return min(size, max(1, round(density * size)))


def largest(vector: Vector, count: int) -> Vector:
    """Sorted positions of the ``count`` largest magnitudes; of equal ones, the first.

    >>> largest(np.float32([1, -3, 2, -2]), 2).tolist()
    [1, 2]
    """
    if count >= len(vector):
        return np.arange(len(vector))
    # the bits of non-negative floats are ordered as integers, which sort faster
    magnitudes = np.abs(vector).view(f"i{vector.itemsize}")
    bound = np.partition(magnitudes, len(vector) - count)[len(vector) - count]
    kept = np.flatnonzero(magnitudes >= bound)
    if len(kept) > count:
        equal = np.flatnonzero(magnitudes[kept] == bound)
        kept = np.delete(kept, equal[count - len(kept) :])
    return kept


def grouped(arrays: Arrays, per_layer: bool) -> Arrays:
    """The vectors among whose entries a choice is made: one for all arrays, or one for each."""
    if per_layer:
        return {name: flatten({name: x}) for name, x in arrays.items() if x.size}
    return {TOGETHER: flatten(arrays)} if total_size(arrays) else {}


def pack_kept(
    arrays: Arrays, out: Writer, per_layer: bool, choose: Callable[[str, Vector], Vector]
) -> Arrays:
    """Write the positions that ``choose`` returns for each vector; returns the values there."""
    out.number(int(per_layer))
    kept: Arrays = {}
    for name, vector in grouped(arrays, per_layer).items():
        positions = choose(name, vector)
        out.about = name
        if not per_layer:
            out.standing[name] = entries(arrays, positions)
        write_indices(out, positions, len(vector))
        kept[name] = vector[positions]
    return kept


def entries(arrays: Arrays, positions: Vector | None = None) -> dict[str, int]:
    """How many of some positions in the common vector each array has; of all, its size."""
    sizes = [x.size for x in arrays.values()]
    if positions is not None:
        ends = np.searchsorted(positions, np.cumsum(sizes))
        sizes = np.diff(ends, prepend=0).tolist()
    return {name: size for name, size in zip(arrays, sizes, strict=True) if size}


def unpack_kept(body: Reader, like: Arrays, rest: Rest) -> Arrays:
    """The inverse of ``pack_kept``: zeros, and the values that ``rest`` decodes."""
    per_layer = bool(body.number(1))
    layout, positions, sizes = {}, {}, {}
    names = [n for n, x in like.items() if x.size] if per_layer else [TOGETHER]
    for name in names if total_size(like) else []:
        sizes[name] = like[name].size if per_layer else total_size(like)
        dtype = like[name].dtype if per_layer else common_dtype(like)
        positions[name] = read_indices(body, sizes[name])
        layout[name] = np.empty(len(positions[name]), dtype)
    vectors: Arrays = {}
    for name, values in rest(layout).items():
        vectors[name] = np.zeros(sizes[name], values.dtype)
        vectors[name][positions[name]] = values
    if not per_layer:
        return unflatten(vectors.get(TOGETHER, np.zeros(0, np.float32)), like)
    whole = {name: vectors.get(name, np.zeros(0, x.dtype)) for name, x in like.items()}
    return {name: x.reshape(like[name].shape) for name, x in whole.items()}
