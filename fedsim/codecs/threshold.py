"""Threshold: the entries whose magnitude reaches a bound, and where they are.

    C(x)_i = x_i if |x_i| >= t, else 0;  t = threshold * scale(x)

N. Strom, "Scalable Distributed DNN Training Using Commodity GPU Cloud Computing", Interspeech
2015; A. Sahu et al., "Rethinking gradient sparsification as total error minimization", NeurIPS
2021, https://arxiv.org/abs/2108.00951 (an absolute bound). A bound relative to the vector's root
mean square or its maximum (up to 1) always keeps the largest entry, so it contracts by 1/n.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedsim.arrays import Arrays
from fedsim.codec import Codec, Reader, Rest, Sender, Stage, Writer
from fedsim.codecs._sparse import grouped, pack_kept, unpack_kept


@dataclass(frozen=True, kw_only=True)
class Threshold(Codec):
    """Keep entries from a magnitude on; their number varies from message to message.

    Args:
        threshold: The bound, in units of ``scale``.
        scale: ``rms`` or ``max`` of the vector, or ``absolute`` (1).
        per_layer: Take the scale of each array instead of that of all entries together.
    """

    stage: ClassVar[Stage] = "sparsify"

    threshold: Annotated[float, Field(gt=0)] = 1.0
    scale: Literal["rms", "max", "absolute"] = "rms"
    per_layer: bool = False

    @property
    def contraction(self) -> bool:  # type: ignore[override]
        """Whether the largest entry is always kept."""
        return self.scale != "absolute" and self.threshold <= 1

    def pack(self, arrays: Arrays, out: Writer, state: Arrays, sender: Sender) -> Arrays:
        """Write the positions of large entries and leave their values."""
        return pack_kept(arrays, out, self.per_layer, lambda name, x: self._large(x))

    def unpack(self, body: Reader, like: Arrays, rest: Rest) -> Arrays:
        """Zeros, and the values at their positions."""
        return unpack_kept(body, like, rest)

    def alpha(self, like: Arrays) -> float:
        """At least the largest entry is kept of every vector."""
        sizes = [len(x) for x in grouped(like, self.per_layer).values()]
        return min((1 / n for n in sizes), default=1.0) if self.contraction else 0.0

    def _large(self, x: NDArray[Any]) -> NDArray[Any]:
        magnitudes = np.abs(x)
        largest = float(magnitudes.max())
        bound = self.threshold
        if self.scale == "max":
            bound *= largest
        elif self.scale == "rms" and largest:
            shares = magnitudes.astype(np.float64) / largest
            bound *= min(1.0, float(np.sqrt(np.mean(shares * shares)))) * largest
        if self.contraction:
            bound = min(bound, largest)  # rounding must not lose the largest entry
        return np.flatnonzero((magnitudes >= bound) & (magnitudes > 0))
