"""Bit strings in NumPy: fixed-width integers, Rice codes, Elias-gamma codes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import PayloadError

Bits = NDArray[np.uint8]
Integers = NDArray[Any]


def width_of(limit: int) -> int:
    """Bits that hold every integer from 0 to ``limit``.

    >>> [width_of(n) for n in (0, 1, 2, 255, 256)]
    [0, 1, 2, 8, 9]
    """
    return int(limit).bit_length()


def num_packed(count: int, width: int) -> int:
    """Bytes of ``count`` integers of ``width`` bits."""
    return -(-count * width // 8)


def pack_bits(values: Integers, width: int) -> Bits:
    """Non-negative integers in ``width`` bits each, most significant bit first."""
    if width in (0, 8):
        return np.asarray(values, np.uint8)[: len(values) if width else 0]
    if width in (1, 2, 4):
        return _pack_into_bytes(np.asarray(values, np.uint8), width)
    size = 1 if width < 8 else 2 if width <= 16 else 4 if width <= 32 else 8
    words = np.ascontiguousarray(values, dtype=f">u{size}")
    bits = np.unpackbits(words.view(np.uint8).reshape(-1, size), axis=1)
    return np.packbits(bits[:, 8 * size - width :])


def _pack_into_bytes(values: Bits, width: int) -> Bits:
    if width == 1:
        return np.packbits(values)
    per_byte = 8 // width
    padded = np.zeros(-(-len(values) // per_byte) * per_byte, np.uint8)
    padded[: len(values)] = values
    result = padded[0::per_byte].copy()
    for i in range(1, per_byte):
        result <<= width
        result |= padded[i::per_byte]
    return result


def unpack_bits(data: Bits, count: int, width: int) -> Integers:
    """The inverse of ``pack_bits``."""
    if width == 0:
        return np.zeros(count, np.uint8)
    if width == 8:
        return data[:count]
    if width == 1:
        return np.unpackbits(data, count=count)
    if width in (2, 4):
        per_byte = 8 // width
        result = np.empty((len(data), per_byte), np.uint8)
        for i in range(per_byte):
            np.right_shift(data, 8 - width * (i + 1), out=result[:, i])
        result &= (1 << width) - 1
        return result.reshape(-1)[:count]
    size = 1 if width < 8 else 2 if width <= 16 else 4 if width <= 32 else 8
    padded = np.zeros((count, 8 * size), np.uint8)
    padded[:, 8 * size - width :] = np.unpackbits(data, count=count * width).reshape(count, width)
    return np.packbits(padded).view(f">u{size}").astype(f"u{size}")


def best_rice_width(share: float) -> int:
    """Low bits of the Golomb-Rice code for gaps between positions kept with probability ``share``.

    >>> [best_rice_width(p) for p in (0.01, 0.05, 0.1, 0.2, 0.3, 0.5)]
    [6, 4, 3, 2, 1, 0]
    """
    if not 0 < share < 0.5:
        return 0
    golden = (1 + math.sqrt(5)) / 2
    return max(0, 1 + math.floor(math.log2(math.log(golden - 1) / math.log1p(-share))))


def rice_bits(values: Integers, low: int) -> int:
    """Bits of the Rice code with ``low`` low bits: a unary quotient, its end, the low bits."""
    return int((values >> low).sum()) + len(values) * (1 + low)


def pack_unary(values: Integers) -> Bits:
    """Each integer as that many zeros and a one."""
    ends = np.cumsum(values + 1) - 1
    bits = np.zeros(int(ends[-1]) + 1 if len(ends) else 0, np.uint8)
    bits[ends] = 1
    return np.packbits(bits)


def unpack_unary(data: Bits, count: int) -> Integers:
    """The inverse of ``pack_unary``.

    Raises:
        PayloadError: There are not ``count`` ends.
    """
    ends = np.flatnonzero(np.unpackbits(data))
    if len(ends) != count:
        raise PayloadError(f"payload body has {len(ends)} codes where {count} are announced")
    return np.diff(ends, prepend=-1) - 1


def gamma_bits(values: Integers) -> int:
    """Bits of the Elias-gamma codes of integers from 1 on: ``2 floor(log2 v) + 1`` each."""
    return int((2 * _floor_log2(values) + 1).sum())


def pack_gamma(values: Integers) -> tuple[Bits, Bits]:
    """Elias-gamma codes in two strings: unary lengths, and the digits below the leading one."""
    lengths = _floor_log2(values)
    owners = np.repeat(np.arange(len(values)), lengths)
    starts = np.cumsum(lengths) - lengths
    places = lengths[owners] - 1 - (np.arange(len(owners)) - starts[owners])
    return pack_unary(lengths), np.packbits((values[owners] >> places & 1).astype(np.uint8))


def unpack_gamma(unary: Bits, digits: Bits, count: int) -> Integers:
    """The inverse of ``pack_gamma``.

    Raises:
        PayloadError: The codes do not fit together.
    """
    lengths = unpack_unary(unary, count)
    if len(lengths) and lengths.max() > 62:
        raise PayloadError("payload body holds a gap of more than 62 bits")
    owners = np.repeat(np.arange(count), lengths)
    if num_packed(len(owners), 1) != len(digits):
        raise PayloadError("payload body has digits of another length than announced")
    starts = np.cumsum(lengths) - lengths
    places = lengths[owners] - 1 - (np.arange(len(owners)) - starts[owners])
    bits = np.unpackbits(digits, count=len(owners)).astype(np.int64)
    result = np.int64(1) << lengths
    np.add.at(result, owners, bits << places)
    return result


def gamma_digits(unary: Bits, count: int) -> int:
    """How many digits belong to these unary lengths."""
    return int(unpack_unary(unary, count).sum())


def _floor_log2(values: Integers) -> Integers:
    return np.frexp(values.astype(np.float64))[1].astype(np.int64) - 1
