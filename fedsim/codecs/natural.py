"""Natural compression: random rounding to a power of two; sign and exponent travel.

    C(x)_i = sign(x_i) 2^floor(log2 |x_i|) or twice that, at random without bias;  omega = 1/8

S. Horvath, C.-Y. Ho, L. Horvath, A. N. Sahu, M. Canini, P. Richtarik, "Natural Compression for
Distributed Deep Learning", MSML 2022, https://arxiv.org/abs/1905.10988. Exponents are
entropy-coded (the paper: 8 bits and a sign).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedsim.arrays import Arrays
from fedsim.codec import Codec, Reader, Rest, Sender, Stage, Writer
from fedsim.codecs._sparse import TOGETHER, entries
from fedsim.codecs._symbols import read_symbols, write_symbols
from fedsim.codecs._vectors import common_dtype, flatten, narrow, total_size, unflatten

OFFSET = 1100
"""Exponents of float64 lie above minus this."""


@dataclass(frozen=True, kw_only=True)
class Natural(Codec):
    """Powers of two.

    Args:
        rescaled: Divide by 9/8: biased, but it contracts by 8/9 and is fit for error feedback.
    """

    stage: ClassVar[Stage] = "quantise"

    rescaled: bool = False

    @property
    def contraction(self) -> bool:  # type: ignore[override]
        """Rescaled, it contracts."""
        return self.rescaled

    @property
    def unbiased(self) -> bool:  # type: ignore[override]
        """As in the paper."""
        return not self.rescaled

    def pack(self, arrays: Arrays, out: Writer, state: Arrays, sender: Sender) -> Arrays:
        """Write signs and exponents of all arrays together."""
        flat = flatten(arrays).astype(np.float64)
        signs, exponents = _rounded(flat, sender.rng("natural"))
        used = exponents[signs != 0]
        low = int(used.min()) if used.size else 0
        spread = int(used.max()) - low if used.size else 0
        out.number(int(self.rescaled))
        out.number(low + OFFSET)
        out.number(spread)
        out.about, out.standing[TOGETHER] = TOGETHER, entries(arrays)
        symbols = np.where(signs == 0, 0, 1 + 2 * (exponents - low) + (signs > 0))
        write_symbols(out, symbols.astype(np.int32), 2 * spread + 3)
        return {}

    def unpack(self, body: Reader, like: Arrays, rest: Rest) -> Arrays:
        """Powers of two."""
        factor = 8 / 9 if body.number(1) else 1.0
        low = body.number(2 * OFFSET) - OFFSET
        spread = body.number(2 * OFFSET)
        symbols = read_symbols(body, total_size(like), 2 * spread + 3).astype(np.int32)
        signs = np.where(symbols == 0, 0.0, np.where(symbols & 1, -factor, factor))
        with np.errstate(over="ignore"):
            values = np.ldexp(signs, low + (symbols - 1) // 2)
        rest({})
        return unflatten(narrow(values, np.dtype(common_dtype(like))), like)

    def alpha(self, like: Arrays) -> float:
        """8/9 when rescaled."""
        return 8 / 9 if self.rescaled else 0.0


def _rounded(
    flat: NDArray[Any], rng: np.random.Generator
) -> tuple[NDArray[np.int8], NDArray[np.int32]]:
    """Signs, and exponents rounded up with the probability that makes the mean right."""
    fractions, exponents = np.frexp(np.abs(flat))  # |x| = fraction * 2^exponent, in [1/2, 1)
    up = rng.random(flat.size) < 2 * fractions - 1
    return np.sign(flat).astype(np.int8), exponents - 1 + up
