"""Scaled sign: one bit an entry, and the mean magnitude of each array.

    C(x) = (|x|_1 / n) sign(x)          |C(x) - x|^2 = |x|^2 - |x|_1^2 / n

F. Seide et al., "1-Bit Stochastic Gradient Descent", Interspeech 2014; S. P. Karimireddy et al.,
"Error Feedback Fixes SignSGD", ICML 2019, https://arxiv.org/abs/1901.09847. Zeros count as
positive, which changes no error. After ``topk`` this is the ternary code of STC
(F. Sattler et al., 2019, https://arxiv.org/abs/1903.02891).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedsim.arrays import Arrays
from fedsim.bitstrings import num_packed
from fedsim.codec import Codec, Reader, Rest, Sender, Stage, Writer
from fedsim.codecs._vectors import filled, finite_scale, unpack_each, wide, wide_dtype


@dataclass(frozen=True, kw_only=True)
class Sign(Codec):
    """One bit an entry."""

    stage: ClassVar[Stage] = "quantise"
    contraction = True

    def pack(self, arrays: Arrays, out: Writer, state: Arrays, sender: Sender) -> Arrays:
        """Write scale and signs of each array."""
        for name, x in filled(arrays):
            out.about = name
            scale = finite_scale(np.abs(wide(x)).mean(dtype=np.float64), "mean")
            out.put(np.asarray(scale, wide_dtype(x)), "scales")
            out.put(np.packbits(x.reshape(-1) >= 0), "values")
        return {}

    def unpack(self, body: Reader, like: Arrays, rest: Rest) -> Arrays:
        """Plus or minus the scale."""

        def read(x: NDArray[Any]) -> NDArray[Any]:
            scale = body.array(wide_dtype(x), 1)
            bits = np.unpackbits(body.array(np.uint8, num_packed(x.size, 1)), count=x.size)
            values: NDArray[Any] = np.concatenate([-scale, scale])[bits]  # 0 is minus, 1 is plus
            return values

        return unpack_each(like, rest, read)

    def alpha(self, like: Arrays) -> float:
        """Of any array, at least ``1/n``."""
        return min((1 / x.size for _, x in filled(like)), default=1.0)
