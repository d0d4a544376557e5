"""Which of n entries were kept: sorted positions in the shortest of four codes.

    bitmap   one bit an entry
    rice     gaps between positions, Golomb-Rice
    fixed    gaps in as many bits as the largest needs
    entropy  the bitmap through an entropy coder with the kept share as its model

All positions and none cost one byte. The chosen code's number is that byte.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim import bitstrings
from fedsim.codec import Reader, Writer
from fedsim.codecs import _symbols
from fedsim.errors import PayloadError

Positions = NDArray[Any]
NONE, ALL, BITMAP, RICE, FIXED, ENTROPY = range(6)
WORTH = 0.985
"""The entropy coder must save this much to be used: it is slower to decode than the others."""


def write_indices(out: Writer, positions: Positions, size: int) -> None:
    """Write sorted, distinct positions out of ``size``, in the shortest code."""
    count = len(positions)
    if count in (0, size):
        out.number(ALL if count and count == size else NONE, "indices")
        return
    gaps = np.diff(positions, prepend=-1) - 1
    widths = {RICE: _rice_width(gaps, count / size), FIXED: bitstrings.width_of(int(gaps.max()))}
    lengths = {
        RICE: bitstrings.rice_bits(gaps, widths[RICE]) + 48,
        FIXED: count * widths[FIXED] + 24,
        BITMAP: size,
    }
    best = min(lengths, key=lambda code: lengths[code])
    if _symbols.entropy_bits(np.array([size - count, count])) + 128 < WORTH * lengths[best]:
        best = ENTROPY
    out.number(best, "indices")
    if best != BITMAP:
        out.number(count, "indices")
    _WRITERS[best](out, positions, gaps, size, widths.get(best, 0))


def _rice_width(gaps: Positions, share: float) -> int:
    """The best width near the one that suits independent positions."""
    guess = bitstrings.best_rice_width(share)
    near = range(max(0, guess - 1), guess + 2)
    return min(near, key=lambda width: bitstrings.rice_bits(gaps, width))


def read_indices(body: Reader, size: int) -> Positions:
    """The positions that ``write_indices`` wrote.

    Raises:
        PayloadError: They are no positions out of ``size``.
    """
    code = body.number(ENTROPY)
    if code == NONE:
        return np.zeros(0, np.int64)
    if code == ALL:
        return np.arange(size)
    if code == BITMAP:
        data = body.array(np.uint8, bitstrings.num_packed(size, 1))
        return np.flatnonzero(np.unpackbits(data, count=size))
    count = body.number(size)
    if code == ENTROPY:
        positions = np.flatnonzero(_symbols.read_binary(body, count, size))
        if len(positions) != count:
            raise PayloadError("payload body marks another number of positions than announced")
        return positions
    gaps = _read_gaps(body, code, count)
    positions = np.cumsum(gaps + 1) - 1
    if len(positions) != count or (count and int(positions[-1]) >= size):
        raise PayloadError("payload body holds positions outside the arrays")
    return positions


def _read_gaps(body: Reader, code: int, count: int) -> Positions:
    width = body.number(40)
    if code == FIXED:
        data = body.array(np.uint8, bitstrings.num_packed(count, width))
        return bitstrings.unpack_bits(data, count, width).astype(np.int64)
    unary = body.array(np.uint8, body.number(2**40))
    low = body.array(np.uint8, bitstrings.num_packed(count, width))
    high = bitstrings.unpack_unary(unary, count)
    return (high << width) + bitstrings.unpack_bits(low, count, width).astype(np.int64)


def _write_bitmap(
    out: Writer, positions: Positions, gaps: Positions, size: int, width: int
) -> None:
    mask = np.zeros(size, np.uint8)
    mask[positions] = 1
    out.put(np.packbits(mask), "indices")


def _write_rice(out: Writer, positions: Positions, gaps: Positions, size: int, width: int) -> None:
    unary = bitstrings.pack_unary(gaps >> width)
    out.number(width, "indices")
    out.number(len(unary), "indices")
    out.put(unary, "indices")
    out.put(bitstrings.pack_bits(gaps & ((1 << width) - 1), width), "indices")


def _write_fixed(out: Writer, positions: Positions, gaps: Positions, size: int, width: int) -> None:
    out.number(width, "indices")
    out.put(bitstrings.pack_bits(gaps, width), "indices")


def _write_entropy(
    out: Writer, positions: Positions, gaps: Positions, size: int, width: int
) -> None:
    mask = np.zeros(size, np.int32)
    mask[positions] = 1
    _symbols.write_binary(out, mask, len(positions), "indices")


_WRITERS = {
    BITMAP: _write_bitmap,
    RICE: _write_rice,
    FIXED: _write_fixed,
    ENTROPY: _write_entropy,
}
