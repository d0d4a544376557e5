"""QSGD: random rounding to a few levels of each bucket's norm, entropy-coded.

    C(x)_i = |x| sign(x_i) xi_i / s,  xi_i = floor(s |x_i| / |x| + u),  u uniform on [0, 1)
    s = 2^(bits-1) - 1 levels;  omega = min(d / s^2, sqrt(d) / s) for the 2-norm of d entries

D. Alistarh, D. Grubic, J. Li, R. Tomioka, M. Vojnovic, "QSGD: Communication-Efficient SGD via
Gradient Quantization and Encoding", NeurIPS 2017, https://arxiv.org/abs/1610.02132. Symbols are
coded by an entropy coder where that is shorter than ``bits`` each (the paper: Elias codes).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedsim.arrays import Arrays
from fedsim.codec import Codec, Reader, Rest, Sender, Stage, Writer
from fedsim.codecs._blocks import as_blocks, from_grid, num_blocks
from fedsim.codecs._symbols import read_symbols, write_symbols
from fedsim.codecs._vectors import filled, finite_scale, unpack_each, wide, wide_dtype

MOST_BITS = 12


@dataclass(frozen=True, kw_only=True)
class QSGD(Codec):
    """Unbiased rounding to ``2^(bits-1) - 1`` levels and their negatives.

    Args:
        bits: Bits of a symbol before entropy coding, sign included.
        bucket: Entries with a common norm; 0 for all of an array.
        norm: The 2-norm of the paper, or the largest magnitude, which varies less.
        rescaled: Divide by ``1 + omega``: biased, but fit for error feedback.
    """

    stage: ClassVar[Stage] = "quantise"
    planned = "bits"

    bits: Annotated[int, Field(ge=2, le=MOST_BITS)] = 4
    bucket: Annotated[int, Field(ge=0, le=2**30)] = 512
    norm: Literal["l2", "max"] = "l2"
    rescaled: bool = False

    @property
    def contraction(self) -> bool:  # type: ignore[override]
        """Rescaled, it contracts by ``1 / (1 + omega)``."""
        return self.rescaled

    @property
    def unbiased(self) -> bool:  # type: ignore[override]
        """As in the paper."""
        return not self.rescaled

    def pack(self, arrays: Arrays, out: Writer, state: Arrays, sender: Sender) -> Arrays:
        """Write norms and symbols of each array."""
        out.number(self.bucket)
        rng = sender.rng("qsgd")
        for name, x in filled(arrays):
            out.about = name
            bits = int(sender.plan.get(name, self.bits))
            levels = 2 ** (bits - 1) - 1
            blocks = as_blocks(wide(x), self.bucket)
            norms = finite_scale(self._norms(blocks), "norm")
            factor = 1 + self.omega(blocks.shape[1], levels) if self.rescaled else 1.0
            out.number(bits)
            out.put((norms / factor / levels).astype(blocks.dtype), "scales")
            symbols = _rounded(blocks, norms, levels, rng).reshape(-1)[: x.size]
            write_symbols(out, symbols, 2 * levels + 1)
        return {}

    def unpack(self, body: Reader, like: Arrays, rest: Rest) -> Arrays:
        """Levels times norms."""
        bucket = body.number(2**30)

        def read(x: NDArray[Any]) -> NDArray[Any]:
            levels = 2 ** (body.number(MOST_BITS) - 1) - 1
            if levels < 1:
                raise ValueError("no levels")
            steps = body.array(wide_dtype(x), num_blocks(x.size, bucket))
            symbols = read_symbols(body, x.size, 2 * levels + 1)
            return from_grid(as_blocks(symbols.astype(np.int16) - levels, bucket), steps)

        return unpack_each(like, rest, read)

    def alpha(self, like: Arrays) -> float:
        """One over ``1 + omega`` of the largest bucket."""
        sizes = [self.bucket or x.size for _, x in filled(like)]
        levels = 2 ** (self.bits - 1) - 1
        bounds = (1 / (1 + self.omega(n, levels)) for n in sizes)
        return min(bounds, default=1.0) if self.contraction else 0.0

    def candidates(self) -> tuple[float, ...]:
        """From 2 to 8 bits."""
        return tuple(range(2, 9))

    def omega(self, size: int, levels: int) -> float:
        """Bound of the relative variance for a bucket of so many entries."""
        if self.norm == "max":  # every entry varies by at most a quarter of a squared step
            return min(size / (4 * levels**2), math.sqrt(size) / levels)
        return min(size / levels**2, math.sqrt(size) / levels)

    def _norms(self, blocks: NDArray[Any]) -> NDArray[Any]:
        largest: NDArray[Any] = np.abs(blocks).max(axis=1)
        if self.norm == "max":
            return largest
        unit = np.where(largest > 0, largest, 1)  # squares of the shares cannot overflow
        shares = blocks / unit[:, None]
        with np.errstate(over="ignore"):
            norms: NDArray[Any] = largest * np.sqrt(np.einsum("ij,ij->i", shares, shares))
        return norms.astype(blocks.dtype)


def _rounded(
    blocks: NDArray[Any], norms: NDArray[Any], levels: int, rng: np.random.Generator
) -> NDArray[Any]:
    """Symbols 0 to ``2 levels``; the middle one is zero."""
    with np.errstate(over="ignore"):  # one over the smallest numbers: these become zero
        inverse = np.divide(levels, norms, out=np.zeros_like(norms), where=norms > 0)
    inverse[~np.isfinite(inverse)] = 0
    scaled: NDArray[Any] = blocks * inverse[:, None]
    scaled += rng.random(scaled.shape, dtype=scaled.dtype)
    np.floor(scaled, out=scaled)
    np.clip(scaled, -levels, levels, out=scaled)
    scaled += levels
    return scaled.astype(np.int32)
