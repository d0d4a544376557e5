"""bfloat16: the upper half of float32, rounded to the nearest.

    8 bits of exponent, 7 of fraction: the range of float32, relative error up to 2^-8

D. Kalamkar et al., "A Study of BFLOAT16 for Deep Learning Training", 2019,
https://arxiv.org/abs/1905.12322.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedsim.arrays import Arrays
from fedsim.codec import Codec, Reader, Rest, Sender, Stage, Writer
from fedsim.codecs._vectors import narrow

LARGEST = 0x7F7F


@dataclass(frozen=True, kw_only=True)
class BF16(Codec):
    """Sixteen bits an entry, with float32's range; what is beyond becomes the largest number."""

    stage: ClassVar[Stage] = "quantise"
    contraction = True

    def pack(self, arrays: Arrays, out: Writer, state: Arrays, sender: Sender) -> Arrays:
        """Leave the upper halves as 16-bit words."""
        return {name: to_bf16(x) for name, x in arrays.items()}

    def unpack(self, body: Reader, like: Arrays, rest: Rest) -> Arrays:
        """Fill up the lower halves with zeros."""
        words = rest({name: np.empty(x.shape, "<u2") for name, x in like.items()})
        return {name: narrow(from_bf16(words[name]), x.dtype) for name, x in like.items()}

    def alpha(self, like: Arrays) -> float:
        """Relative errors are at most 2^-8."""
        return 0.99


def to_bf16(x: NDArray[Any]) -> NDArray[Any]:
    """Nearest bfloat16 (ties to even) as 16-bit words."""
    bits = np.ascontiguousarray(narrow(x, np.dtype(np.float32))).view("<u4").reshape(x.shape)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    overflown = (rounded & 0x7FFF) > LARGEST
    words: NDArray[Any] = np.where(overflown, rounded & 0x8000 | LARGEST, rounded)
    return words.astype("<u2")


def from_bf16(words: NDArray[Any]) -> NDArray[Any]:
    """The float32 values of 16-bit words."""
    bits: NDArray[Any] = np.left_shift(words, 16, dtype=np.uint32)
    return bits.view(np.float32)
