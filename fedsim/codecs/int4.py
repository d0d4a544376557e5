"""Integers of 4 bits on a grid of each block's own.

    q_i = round(7 x_i / max_block |x|)          4 bits an entry and 16 a block

Blocks as in T. Dettmers et al., 2022, https://arxiv.org/abs/2110.02861, on a uniform grid of 15
points; the step of a block travels as the upper half of a float32. Like ``int8``, rounding to the
nearest contracts by about 1/block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedsim.arrays import Arrays
from fedsim.bitstrings import num_packed, pack_bits, unpack_bits
from fedsim.codec import Codec, Reader, Rest, Sender, Stage, Writer
from fedsim.codecs._blocks import (
    as_blocks,
    from_grid,
    inverse,
    largest,
    num_blocks,
    read_length,
    round_to_grid,
)
from fedsim.codecs._vectors import filled, unpack_each, wide
from fedsim.codecs.bf16 import from_bf16, to_bf16


@dataclass(frozen=True, kw_only=True)
class Int4(Codec):
    """Four bits an entry.

    Args:
        block: Entries with a common scale.
        stochastic: Round up or down at random instead of to the nearest; unbiased but for the
            rounding of scales.
    """

    stage: ClassVar[Stage] = "quantise"

    block: Annotated[int, Field(ge=1, le=2**20)] = 64
    stochastic: bool = False

    @property
    def contraction(self) -> bool:  # type: ignore[override]
        """Rounding to the nearest contracts."""
        return not self.stochastic

    def pack(self, arrays: Arrays, out: Writer, state: Arrays, sender: Sender) -> Arrays:
        """Write the steps of the grids and the integers."""
        out.number(self.block)
        rng = sender.rng("int4") if self.stochastic else None
        for name, x in filled(arrays):
            out.about = name
            blocks = as_blocks(wide(x), self.block)
            steps = to_bf16(largest(blocks) / 7)
            out.put(steps, "scales")
            step_values = from_bf16(steps).astype(blocks.dtype)
            integers = round_to_grid(blocks, inverse(step_values), 7, rng)
            symbols = (integers.reshape(-1)[: x.size] + 7).view(np.uint8)
            out.put(pack_bits(symbols, 4), "values")
        return {}

    def unpack(self, body: Reader, like: Arrays, rest: Rest) -> Arrays:
        """Grid points."""
        block = read_length(body)

        def read(x: NDArray[Any]) -> NDArray[Any]:
            steps = from_bf16(body.array("<u2", num_blocks(x.size, block)))
            symbols = unpack_bits(body.array(np.uint8, num_packed(x.size, 4)), x.size, 4)
            return from_grid(as_blocks(symbols.view(np.int8) - np.int8(7), block), steps)

        return unpack_each(like, rest, read)

    def alpha(self, like: Arrays) -> float:
        """The largest entry of every block is kept, but for the rounding of its scale."""
        return 0.999 / self.block if self.contraction else 0.0
