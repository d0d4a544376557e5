"""TernGrad: every entry becomes -s, 0 or s at random, without bias.

    s = max |x|;  C(x)_i = s sign(x_i) with probability |x_i| / s, else 0

W. Wen et al., "TernGrad: Ternary Gradients to Reduce Communication in Distributed Deep Learning",
NeurIPS 2017, https://arxiv.org/abs/1705.07878. Layer-wise, without the paper's gradient clipping;
it is ``qsgd`` with one level and the maximum norm. Symbols are entropy-coded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedsim.arrays import Arrays
from fedsim.codec import Codec, Reader, Rest, Sender, Stage, Writer
from fedsim.codecs._symbols import read_symbols, write_symbols
from fedsim.codecs._vectors import filled, unpack_each, wide, wide_dtype


@dataclass(frozen=True, kw_only=True)
class TernGrad(Codec):
    """Three values for each array. Unbiased only: unfit for error feedback."""

    stage: ClassVar[Stage] = "quantise"
    unbiased = True

    def pack(self, arrays: Arrays, out: Writer, state: Arrays, sender: Sender) -> Arrays:
        """Write scale and symbols of each array."""
        rng = sender.rng("terngrad")
        for name, x in filled(arrays):
            out.about = name
            flat = wide(x)
            magnitudes = np.abs(flat)
            scale = magnitudes.max()
            out.put(np.asarray(scale), "scales")
            drawn = rng.random(x.size, dtype=flat.dtype) * scale < magnitudes
            symbols = np.where(drawn, np.sign(flat), 0).astype(np.int32) + 1
            write_symbols(out, symbols, 3)
        return {}

    def unpack(self, body: Reader, like: Arrays, rest: Rest) -> Arrays:
        """Minus the scale, zero, or the scale."""

        def read(x: NDArray[Any]) -> NDArray[Any]:
            scale = body.array(wide_dtype(x), 1)
            values: NDArray[Any] = np.concatenate([-scale, 0 * scale, scale])
            return values[read_symbols(body, x.size, 3)]

        return unpack_each(like, rest, read)
