"""The directions of ``fedsim.directions`` made by the processor, compiled by Numba.

Philox works on vectors of 16 counters. Its 256 bits for each counter, 16 words of 16 bits or 256 of
one, are looked up in a table, and the values, while in a first-level cache, scaled and added. Every
product and sum is rounded, in the order written: without ``fastmath`` no compiler may fuse or
reorder them. Numba keeps the compiled code beside this file or in the user's cache directory.
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

from fedsim.directions import PHILOX_MULTIPLIERS, PHILOX_ROUNDS, PHILOX_WEYL, Vector

F = TypeVar("F", bound=Callable[..., Any])
Words = NDArray[np.uint64]

_LANES = 16
"""Counters that Philox works on at once: two vectors of AVX-512."""
_PIECE = 4096
"""Values that are summed at a time over several directions; they fit a first-level cache."""
_AHEAD = 1024
"""How many values ahead memory is fetched."""


def _compiled(function: F) -> F:
    """Compile at the first call; without Python's lock, and kept unless there is no place."""
    try:
        return cast(F, njit(nogil=True, cache=True)(function))
    except RuntimeError:  # neither this folder nor the user's cache can be written to
        return cast(F, njit(nogil=True)(function))


def _inner(function: F) -> F:
    """Compile together with the function that calls it."""
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
        _add(x, start, table, keys[0], factors[0], scales[0])
        return
    total = np.empty(_PIECE, np.float32)
    for piece in range(-(start % _PIECE), x.size, _PIECE):
        first = max(piece, 0)
        part = x[first : piece + _PIECE]
        some = total[: part.size]
        some[:] = -0.0  # anything added to it stays what it is
        for k in range(len(keys)):
            _add(some, start + first, table, keys[k], factors[k], scales[k])
        part += some


@_inner
def _add(
    x: Vector,
    start: int,
    table: Vector,
    key: Words,
    factor: np.float32,
    scale: np.float32,
) -> None:
    """``x += (table[words] * factor) * scale``, from the word with the number ``start`` on."""
    words = np.empty(4 * _LANES, np.uint64)
    each = 256 if table.size == 2 else 16
    values = np.empty(_LANES * each, np.float32)
    for piece in range(-(start % values.size), x.size, values.size):
        _philox(words, np.uint64((start + piece) // each + 1), key[0], key[1])
        if table.size == 2:
            _look_up_bits(values, words, table)
        else:
            _look_up(values, words, table, x, piece + _AHEAD)
        first = max(piece, 0)
        part = x[first : piece + values.size]
        some = values[first - piece :]
        for i in range(part.size):
            part[i] += (some[i] * factor) * scale


@_inner
def _look_up(values: Vector, words: Words, table: Vector, x: Vector, ahead: int) -> None:
    """Values for words of 16 bits; meanwhile memory is fetched that will be changed."""
    low = np.uint64(0xFFFF)
    for lane in range(_LANES):
        _prefetch(x, ahead + 16 * lane)
        for i in range(4):
            word = words[i * _LANES + lane]
            first = 16 * lane + 4 * i
            values[first] = table[word & low]
            values[first + 1] = table[(word >> np.uint64(16)) & low]
            values[first + 2] = table[(word >> np.uint64(32)) & low]
            values[first + 3] = table[word >> np.uint64(48)]


@_inner
def _look_up_bits(values: Vector, words: Words, table: Vector) -> None:
    """Values for words of one bit."""
    low, high = table[0], table[1]
    for i in range(4 * _LANES):
        word = words[i % 4 * _LANES + i // 4]
        for bit in range(64):
            values[64 * i + bit] = high if (word >> np.uint64(bit)) & np.uint64(1) else low


@_intrinsic
def _philox(context: Any, out: Any, counter: Any, key: Any, other: Any) -> Any:
    """Philox 4x64 with ten rounds: the first of 4 words for each of 16 counters, then the second.

    The counters are ``counter, counter + 1, ...``
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        out, counter, *keys = arguments
        word = ir.IntType(64)
        vector = ir.VectorType(word, _LANES)

        def all_lanes(value: int) -> Any:
            return vector([value] * _LANES)

        def spread(value: Any) -> Any:
            """A register's value in all lanes."""
            first = builder.insert_element(vector(ir.Undefined), value, ir.IntType(32)(0))
            zeros = ir.VectorType(ir.IntType(32), _LANES)([0] * _LANES)
            return builder.shuffle_vector(first, vector(ir.Undefined), zeros)

        def product(x: Any, multiplier: int) -> tuple[Any, Any]:
            """The upper and the lower 64 bits, from four products of 32 bits."""
            low, half = all_lanes(2**32 - 1), all_lanes(32)
            x_low, x_high = builder.and_(x, low), builder.lshr(x, half)
            y_low, y_high = all_lanes(multiplier % 2**32), all_lanes(multiplier >> 32)
            lowest = builder.mul(x_low, y_low)
            cross = builder.mul(x_low, y_high)
            middle = builder.add(builder.lshr(lowest, half), builder.and_(cross, low))
            middle = builder.add(middle, builder.mul(x_high, y_low))
            upper = builder.add(builder.mul(x_high, y_high), builder.lshr(cross, half))
            upper = builder.add(upper, builder.lshr(middle, half))
            return upper, builder.or_(builder.shl(middle, half), builder.and_(lowest, low))

        a = builder.add(spread(counter), vector(list(range(_LANES))))
        b = c = d = all_lanes(0)
        first, second = map(spread, keys)
        for _ in range(PHILOX_ROUNDS):
            upper, lower = product(a, PHILOX_MULTIPLIERS[0])
            high, low = product(c, PHILOX_MULTIPLIERS[1])
            a = builder.xor(builder.xor(high, b), first)
            c = builder.xor(builder.xor(upper, d), second)
            b, d = low, lower
            first = builder.add(first, all_lanes(PHILOX_WEYL[0]))
            second = builder.add(second, all_lanes(PHILOX_WEYL[1]))
        data = context.make_array(signature.args[0])(context, builder, out).data
        for i, words in enumerate((a, b, c, d)):
            place = builder.gep(data, [word(i * _LANES)])
            builder.store(words, builder.bitcast(place, vector.as_pointer()), align=8)
        return context.get_dummy_value()

    return types.void(out, types.uint64, types.uint64, types.uint64), codegen


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
