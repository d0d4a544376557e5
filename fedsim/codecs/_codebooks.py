"""Arrays of a few values each: a codebook, and for every entry its number in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from fedsim.arrays import Arrays
from fedsim.codec import Reader, Rest, Writer
from fedsim.codecs._vectors import narrow, wide_dtype

Labels = NDArray[Any]


def pack_labelled(
    arrays: Arrays,
    out: Writer,
    min_size: int,
    quantise: Callable[[NDArray[Any]], tuple[Labels, NDArray[Any]]],
    write: Callable[[Writer, Labels, int], None],
) -> Arrays:
    """Write codebooks and labels; returns the arrays of fewer than ``min_size`` entries.

    Args:
        arrays: What to encode.
        out: Takes bytes.
        min_size: Where quantising begins; empty arrays are never quantised.
        quantise: Labels and codebook of an array.
        write: Writes labels below a number.
    """
    out.number(min_size)
    left: Arrays = {}
    for name, x in arrays.items():
        if x.size < max(1, min_size):
            left[name] = x
            continue
        labels, codebook = quantise(x)
        out.about = name
        out.number(len(codebook))
        out.put(codebook, "scales")
        write(out, labels, len(codebook))
    return left


def unpack_labelled(
    body: Reader, like: Arrays, rest: Rest, most: int, read: Callable[[Reader, int, int], Labels]
) -> Arrays:
    """The inverse of ``pack_labelled``, for codebooks of at most ``most`` values."""
    min_size = max(1, body.number(2**62))
    found: Arrays = {}
    for name, x in like.items():
        if x.size >= min_size:
            codebook = body.array(wide_dtype(x), body.number(most))
            values = codebook[read(body, x.size, len(codebook))]
            found[name] = narrow(values, x.dtype).reshape(x.shape)
    found.update(rest({name: x for name, x in like.items() if name not in found}))
    return {name: found[name] for name in like}
