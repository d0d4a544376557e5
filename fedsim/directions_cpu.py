"""The directions of ``fedsim.directions`` made by the processor, in one pass compiled by Numba.

Each step of Philox's counter gives 256 bits: 16 words of 16 bits, or 256 of one. They are looked
up, scaled and added while they are in registers. Every product and sum is rounded, in the order
written: without ``fastmath`` no compiler may fuse or reorder them. Numba keeps the compiled code
beside this file or in the user's cache directory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

F = TypeVar("F", bound=Callable[..., Any])
Vector = NDArray[np.float32]
Word = np.uint64
Words = tuple[Word, Word, Word, Word]
"""What one step of the counter gives."""

_PIECE = 4096
"""Values that are summed at a time over several directions; they fit a first-level cache."""
_AHEAD = 1024
"""How many values ahead memory is fetched."""
_ROUNDS = 10
_FIRST_MULTIPLIER = np.uint64(0xD2E7470EE14C6C93)
_SECOND_MULTIPLIER = np.uint64(0xCA5A826395121157)
_FIRST_WEYL = np.uint64(0x9E3779B97F4A7C15)
_SECOND_WEYL = np.uint64(0xBB67AE8584CAA73B)


def _compiled(function: F) -> F:
    """Compile at the first call; without Python's lock, and kept unless there is no place."""
    try:
        return cast(F, njit(nogil=True, cache=True)(function))
    except RuntimeError:  # neither this folder nor the user's cache can be written to
        return cast(F, njit(nogil=True)(function))


def _inlined(function: F) -> F:
    return cast(F, njit(inline="always")(function))


def _not_inlined(function: F) -> F:
    return cast(F, njit(function))


def _intrinsic(function: Callable[..., Any]) -> Callable[..., Any]:
    return cast(Callable[..., Any], intrinsic(function))


@_compiled
def accumulate(
    x: Vector,
    start: int,
    table: Vector,
    keys: NDArray[np.uint64],
    factors: Vector,
    scales: Vector,
) -> None:
    """``x += sum_k (table[words_k] * factor_k) * scale_k`` in place; the sum is made first.

    Args:
        x: One row of memory.
        start: Its position in the direction.
        table: 65,536 values for words of 16 bits, or two for words of one.
        keys: Philox's keys, shaped (K, 2).
        factors: K factors of the values.
        scales: K scales of the directions.
    """
    if len(keys) == 1:
        _add(x, start, table, keys[0, 0], keys[0, 1], factors[0], scales[0])
        return
    total = np.empty(_PIECE, np.float32)
    for first in range(0, x.size, _PIECE):
        part = x[first : first + _PIECE]
        some = total[: part.size]
        some[:] = -0.0  # anything added to it stays what it is
        for k in range(len(keys)):
            _add(some, start + first, table, keys[k, 0], keys[k, 1], factors[k], scales[k])
        part += some


@_not_inlined
def _add(
    x: Vector,
    start: int,
    table: Vector,
    key: Word,
    other: Word,
    factor: np.float32,
    scale: np.float32,
) -> None:
    """``x += (table[words] * factor) * scale``, from the word with the number ``start`` on."""
    group = 256 if table.size == 2 else 16
    begin = min(-start % group, x.size)
    end = x.size - (x.size - begin) % group
    counter = np.uint64((start + begin) // group)
    _add_part(x[:begin], start, table, key, other, factor, scale)
    if table.size == 2:
        for first in range(begin, end, 256):
            counter += np.uint64(1)
            for ahead in range(first + _AHEAD, first + _AHEAD + 256, 16):
                _prefetch(x, ahead)
            words = _philox(counter, key, other)
            _add_signs(x[first : first + 256], words, table, factor, scale)
    else:
        for first in range(begin, end, 16):
            counter += np.uint64(1)
            _prefetch(x, first + _AHEAD)
            words = _philox(counter, key, other)
            _add_entries(x[first : first + 16], words, table, factor, scale)
    _add_part(x[end:], start + end, table, key, other, factor, scale)


@_not_inlined
def _add_part(
    x: Vector,
    start: int,
    table: Vector,
    key: Word,
    other: Word,
    factor: np.float32,
    scale: np.float32,
) -> None:
    """The same for a part of what one step of the counter gives."""
    if not x.size:
        return
    group = 256 if table.size == 2 else 16
    words = _philox(np.uint64(start // group + 1), key, other)
    values = np.full(group, np.float32(-0.0))
    if table.size == 2:
        _add_signs(values, words, table, factor, scale)
    else:
        _add_entries(values, words, table, factor, scale)
    first = start % group
    x += values[first : first + x.size]


@_inlined
def _add_entries(
    x: Vector, words: Words, table: Vector, factor: np.float32, scale: np.float32
) -> None:
    """``x += (table[words] * factor) * scale`` for 16 words."""
    for i in range(16):
        entry = (words[i // 4] >> np.uint64(i % 4 * 16)) & np.uint64(0xFFFF)
        x[i] += (table[entry] * factor) * scale


@_inlined
def _add_signs(
    x: Vector, words: Words, table: Vector, factor: np.float32, scale: np.float32
) -> None:
    """The same for 256 words of one bit."""
    low, high = (table[0] * factor) * scale, (table[1] * factor) * scale
    for which in range(4):
        for i in range(64):
            bit = (words[which] >> np.uint64(i)) & np.uint64(1)
            x[64 * which + i] += high if bit else low


@_inlined
def _philox(counter: Word, key: Word, other: Word) -> Words:
    """Philox 4x64 with ten rounds."""
    a, b, c, d = counter, np.uint64(0), np.uint64(0), np.uint64(0)
    for _ in range(_ROUNDS):
        high, low = _product(a, _FIRST_MULTIPLIER)
        other_high, other_low = _product(c, _SECOND_MULTIPLIER)
        a, b, c, d = other_high ^ b ^ key, other_low, high ^ d ^ other, low
        key += _FIRST_WEYL
        other += _SECOND_WEYL
    return a, b, c, d


@_intrinsic
def _product(context: Any, x: Any, y: Any) -> Any:
    """The upper and the lower 64 bits of a product."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word, wide = ir.IntType(64), ir.IntType(128)
        product = builder.mul(*(builder.zext(value, wide) for value in arguments))
        upper = builder.trunc(builder.lshr(product, wide(64)), word)
        pair = [upper, builder.trunc(product, word)]
        return context.make_tuple(builder, signature.return_type, pair)

    return types.UniTuple(types.uint64, 2)(types.uint64, types.uint64), codegen


@_intrinsic
def _prefetch(context: Any, x: Any, index: Any) -> Any:
    """Fetch the memory of a value that will be changed; beyond the end nothing happens."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        pointer = builder.bitcast(builder.gep(array.data, [arguments[1]]), cgutils.voidptr_t)
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        write, keep, data = number(1), number(3), number(1)
        builder.call(function, [pointer, write, keep, data])
        return context.get_dummy_value()

    return types.void(x, types.int64), codegen
