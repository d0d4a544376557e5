"""Integers of 8 bits on a grid of each block's own.

    q_i = round(127 x_i / max_block |x|)        8 bits an entry and 32 a block

T. Dettmers et al., "8-bit Optimizers via Block-wise Quantization", ICLR 2022,
https://arxiv.org/abs/2110.02861 (blocks; here on a uniform grid). Rounding to the nearest keeps
the largest entry of a block and moves none away from zero by more than its own size: it contracts
by 1/block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedsim.arrays import Arrays
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
from fedsim.codecs._vectors import filled, unpack_each, wide, wide_dtype


@dataclass(frozen=True, kw_only=True)
class Int8(Codec):
    """Eight bits an entry.

    Args:
        block: Entries with a common scale.
        stochastic: Round up or down at random, without bias, instead of to the nearest.
    """

    stage: ClassVar[Stage] = "quantise"

    block: Annotated[int, Field(ge=1, le=2**20)] = 256
    stochastic: bool = False

    @property
    def contraction(self) -> bool:  # type: ignore[override]
        """Rounding to the nearest contracts."""
        return not self.stochastic

    @property
    def unbiased(self) -> bool:  # type: ignore[override]
        """Random rounding has the right expectation."""
        return self.stochastic

    def pack(self, arrays: Arrays, out: Writer, state: Arrays, sender: Sender) -> Arrays:
        """Write the steps of the grids and the integers."""
        out.number(self.block)
        rng = sender.rng("int8") if self.stochastic else None
        for name, x in filled(arrays):
            out.about = name
            blocks = as_blocks(wide(x), self.block)
            steps = largest(blocks) / blocks.dtype.type(127)
            out.put(steps, "scales")
            integers = round_to_grid(blocks, inverse(steps), 127, rng)
            out.put(integers.reshape(-1)[: x.size], "values")
        return {}

    def unpack(self, body: Reader, like: Arrays, rest: Rest) -> Arrays:
        """Grid points."""
        block = read_length(body)

        def read(x: NDArray[Any]) -> NDArray[Any]:
            steps = body.array(wide_dtype(x), num_blocks(x.size, block))
            return from_grid(as_blocks(body.array(np.int8, x.size), block), steps)

        return unpack_each(like, rest, read)

    def alpha(self, like: Arrays) -> float:
        """The largest entry of every block is kept, but for rounding."""
        return 0.999 / self.block if self.contraction else 0.0
