"""The directions of ``fedsim.directions`` made by torch, where a model is: on a GPU, say.

The same Philox words and tables, by 64-bit integers that wrap, and the same float32 additions and
multiplications in the same order: IEEE arithmetic leads to the bits of the CPU's path. The tests
compare both on torch's CPU tensors; no GPU has been tried. Eager torch
launches some 500 small kernels for each piece, so pieces are large: ``PIECE`` values, which took
180 MiB beside the model while they were made (measured on a CPU).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.directions import (
    BLOCK,
    PHILOX_MULTIPLIERS,
    PHILOX_ROUNDS,
    PHILOX_WEYL,
    Directions,
    Vector,
)

PIECE = 256 * BLOCK
"""Values that are made at a time."""
_LOW = 0xFFFFFFFF


def accumulate(
    of: Directions, x: Sequence[Tensor], terms: Sequence[tuple[int, np.float32]]
) -> None:
    """``x += sum_k scale_k * z(seed_k)`` in place, as ``Directions.accumulate``."""
    for start, parts in _pieces(x):
        size = sum(part.numel() for part in parts)
        (seed, scale), *rest = terms
        total = _scaled(of, seed, scale, start, size, parts[0].device)
        for seed, scale in rest:
            total += _scaled(of, seed, scale, start, size, parts[0].device)
        for part, values in zip(parts, torch.split(total, [len(p) for p in parts]), strict=True):
            part += values


def dot(of: Directions, x: Sequence[Tensor], seeds: Sequence[int]) -> NDArray[np.float64]:
    """Per block and seed, the part of ``<x, z(seed)>``; as in ``Directions.dot``."""
    result = np.zeros((of.num_blocks, len(seeds)))
    for start, parts in _pieces(x):
        part = torch.cat(parts)
        first = start // BLOCK
        for k, seed in enumerate(seeds):
            values = _scaled(of, seed, np.float32(1), start, part.numel(), part.device)
            sums = _sums(values * part)
            result[first : first + len(sums), k] = sums
    return result


def _pieces(x: Sequence[Tensor]) -> Iterator[tuple[int, list[Tensor]]]:
    """Flat views of the memory below each piece, and where the piece starts."""
    start = filled = 0
    parts: list[Tensor] = []
    for tensor in x:
        flat = tensor.detach().view(-1)
        while flat.numel():
            part, flat = flat[: PIECE - filled], flat[PIECE - filled :]
            parts.append(part)
            filled += part.numel()
            if filled == PIECE:
                yield start, parts
                start, filled, parts = start + PIECE, 0, []
    if parts:
        yield start, parts


def _scaled(
    of: Directions, seed: int, scale: np.float32, start: int, size: int, device: torch.device
) -> Tensor:
    """``scale * z(seed)`` from position ``start`` on, a multiple of ``BLOCK``."""
    if of.kind == "rademacher":
        words = _words(of, seed, start // 256, -(-size // 64), device)
        signs = _table(_eight_signs, device).index_select(0, words.view(torch.uint8).int())
        return signs.view(-1)[:size] * float(scale)
    words = _words(of, seed, start // 16, -(-size // 4), device)
    values = _table(of.table, device).index_select(0, words.view(torch.int16)[:size].int() & 0xFFFF)
    if of.kind == "sphere":
        values *= float(np.float32(of.factor(seed)))
    if scale != 1:
        values *= float(scale)
    return values


@lru_cache(maxsize=64)
def _table(make: Callable[[], Vector], device: torch.device) -> Tensor:
    return torch.from_numpy(make()).to(device)


@cache
def _eight_signs() -> Vector:
    """Row ``b`` holds the bits of byte ``b`` as signs, the lowest bit first."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return (2.0 * bits - 1.0).astype(np.float32)


def _words(of: Directions, seed: int, counter: int, count: int, device: torch.device) -> Tensor:
    """Raw words of 64 bits after a counter; each of its steps gives four."""
    keys = of.key(seed)
    first = torch.arange(counter + 1, counter + 1 + -(-count // 4), device=device)
    a, b, c, d = first, *(torch.zeros_like(first) for _ in range(3))
    for number in range(PHILOX_ROUNDS):
        high_a, low_a = _product(a, PHILOX_MULTIPLIERS[0])
        high_c, low_c = _product(c, PHILOX_MULTIPLIERS[1])
        one, two = (_signed(key + number * w) for key, w in zip(keys, PHILOX_WEYL, strict=True))
        a, b, c, d = high_c ^ b ^ one, low_c, high_a ^ d ^ two, low_a
    return torch.stack([a, b, c, d], dim=1).view(-1)[:count]


def _product(x: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """The upper and the lower 64 bits of a product; int64 holds bits, its products wrap."""
    low, high = x & _LOW, _upper(x)
    factor_low, factor_high = factor & _LOW, factor >> 32
    one, other = high * factor_low, low * factor_high
    carry = _upper(low * factor_low) + (one & _LOW) + (other & _LOW)
    upper = high * factor_high + _upper(one) + _upper(other) + (carry >> 32)
    return upper, x * _signed(factor)


def _upper(x: Tensor) -> Tensor:
    """The upper 32 bits, as a number that is not negative."""
    return (x >> 32) & _LOW


def _signed(bits: int) -> int:
    """The int64 with the lowest 64 bits of a number.

    >>> _signed(2**64 - 1)
    -1
    """
    return (bits + 2**63) % 2**64 - 2**63


def _sums(values: Tensor) -> list[float]:
    """Sums of the blocks of a piece, each in the order of ``fedsim.directions``.

    NumPy adds 256 numbers as two halves, and each half in eight columns.
    """
    whole = values.numel() - values.numel() % 256
    rows = values[:whole].view(-1, 2, 16, 8)
    columns = rows[:, :, 0]
    for i in range(1, 16):
        columns = columns + rows[:, :, i]
    pairs = columns[..., 0::2] + columns[..., 1::2]
    halves = (pairs[..., 0] + pairs[..., 1]) + (pairs[..., 2] + pairs[..., 3])
    sums = torch.split((halves[:, 0] + halves[:, 1]).cpu(), BLOCK // 256)
    result = [math.fsum(block.tolist()) for block in sums]
    rest = math.fsum(values[whole:].cpu().tolist())
    if whole % BLOCK or not whole:
        result[-1:] = [sum(result[-1:]) + rest]
    elif values.numel() > whole:
        result.append(rest)
    return result
