"""float16: IEEE half precision, rounded to the nearest.

    5 bits of exponent, 10 of fraction: magnitudes from 6e-8 to 65504, relative error up to 2^-11
    from 6e-5 on

P. Micikevicius et al., "Mixed Precision Training", ICLR 2018, https://arxiv.org/abs/1710.03740.
Values below its range lose precision and become zero; larger ones are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedsim.arrays import Arrays
from fedsim.codec import Codec, Reader, Rest, Sender, Stage, Writer
from fedsim.errors import PayloadError


@dataclass(frozen=True, kw_only=True)
class FP16(Codec):
    """Sixteen bits an entry."""

    stage: ClassVar[Stage] = "quantise"
    contraction = True

    def pack(self, arrays: Arrays, out: Writer, state: Arrays, sender: Sender) -> Arrays:
        """Leave the halved values.

        Raises:
            PayloadError: A value is beyond the range.
        """
        with np.errstate(over="ignore"):
            halves = {name: x.astype(np.float16) for name, x in arrays.items()}
        for name, x in halves.items():
            if not np.isfinite(x).all():
                raise PayloadError(
                    f"array {name} holds values beyond float16's 65504", hint="Try bf16"
                )
        return halves

    def unpack(self, body: Reader, like: Arrays, rest: Rest) -> Arrays:
        """Back to the layout's types."""
        halves = rest({name: np.empty(x.shape, np.float16) for name, x in like.items()})
        return {name: halves[name].astype(x.dtype) for name, x in like.items()}
