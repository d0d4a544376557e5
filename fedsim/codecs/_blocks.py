"""Vectors cut into blocks of equal length, each with a scale of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.codec import Reader
from fedsim.errors import PayloadError

Matrix = NDArray[Any]
CACHED = 2**16
"""About this many values are worked on at a time, so that they stay in the cache."""


def num_blocks(size: int, block: int) -> int:
    """Blocks of a vector; ``block`` 0 means one for all."""
    return -(-size // block) if block else min(size, 1)


def as_blocks(x: NDArray[Any], block: int) -> Matrix:
    """One row a block, the last one filled up with zeros; (blocks, block).

    A block that is longer than the vector is as long as it: a payload may claim any length.
    """
    rows = num_blocks(x.size, block)
    width = min(block or x.size, x.size)
    if rows * width == x.size:
        return x.reshape(rows, width)
    padded = np.zeros(rows * width, x.dtype)
    padded[: x.size] = x
    return padded.reshape(rows, width)


def read_length(body: Reader) -> int:
    """Entries of a block, at least one, as the payload says."""
    block = body.number(2**20)
    if not block:
        raise PayloadError("payload body has blocks of no entries")
    return block


def inverse(steps: NDArray[Any]) -> NDArray[Any]:
    """One over each step; 0 for a step of 0, or one so small that its inverse overflows."""
    with np.errstate(divide="ignore", over="ignore"):
        result = 1 / steps
    return np.where(np.isfinite(result), result, 0).astype(steps.dtype, copy=False)


def largest(blocks: Matrix) -> NDArray[Any]:
    """Largest magnitude of each row."""
    result = np.empty(len(blocks), blocks.dtype)
    rows = max(1, CACHED // blocks.shape[1])
    for start in range(0, len(blocks), rows):
        part = slice(start, start + rows)
        np.abs(blocks[part]).max(axis=1, out=result[part])
    return result


def round_to_grid(
    blocks: Matrix, inverse_steps: NDArray[Any], limit: int, rng: np.random.Generator | None
) -> NDArray[np.int8]:
    """Integers ``-limit .. limit`` nearest to ``blocks * inverse_steps``, row by row.

    Args:
        blocks: (blocks, block).
        inverse_steps: One over the distance of grid points, per row.
        limit: Largest integer.
        rng: Round up or down at random, without bias, instead of to the nearest.
    """
    result = np.empty(blocks.shape, np.int8)
    rows = max(1, CACHED // blocks.shape[1])
    for start in range(0, len(blocks), rows):
        part = slice(start, start + rows)
        scaled = blocks[part] * inverse_steps[part, None]
        if rng is None:
            np.rint(scaled, out=scaled)
        else:
            scaled += rng.random(scaled.shape, dtype=scaled.dtype)
            np.floor(scaled, out=scaled)
        result[part] = np.clip(scaled, -limit, limit, out=scaled)
    return result


def from_grid(integers: Matrix, steps: NDArray[Any]) -> Matrix:
    """``integers * steps``, row by row, in the type of ``steps``."""
    result = np.empty(integers.shape, steps.dtype)
    rows = max(1, CACHED // integers.shape[1])
    for start in range(0, len(integers), rows):
        part = slice(start, start + rows)
        np.multiply(integers[part], steps[part, None], out=result[part], dtype=steps.dtype)
    return result
