"""Rand-k: k entries at random; only the seed of their positions travels.

    C(x)_i = x_i for i in a random set of k out of n, else 0        E|C(x) - x|^2 = (1 - k/n) |x|^2
    unbiased: the same times n/k                                    E C(x) = x, omega = n/k - 1

J. Konecny et al., "Federated Learning: Strategies for Improving Communication Efficiency", 2016,
https://arxiv.org/abs/1610.05492 (random masks); S. Stich et al., 2018,
https://arxiv.org/abs/1809.07599 (unscaled, with memory). Scaled, it does not contract for k < n/2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedsim.arrays import Arrays
from fedsim.codec import Codec, Reader, Rest, Sender, Stage, Writer
from fedsim.codecs._sparse import TOGETHER, entries, grouped, num_kept
from fedsim.codecs._vectors import common_dtype, total_size, unflatten


@dataclass(frozen=True, kw_only=True)
class RandK(Codec):
    """Keep random entries, chosen among all arrays together.

    Args:
        density: Share of the entries that is kept, in (0, 1].
        scaled: Multiply by ``n/k``: unbiased, but unfit for error feedback.
    """

    stage: ClassVar[Stage] = "sparsify"

    density: Annotated[float, Field(gt=0, le=1)] = 0.01
    scaled: bool = False

    @property
    def contraction(self) -> bool:  # type: ignore[override]
        """Unscaled entries contract by ``k/n``."""
        return not self.scaled or self.density == 1

    @property
    def unbiased(self) -> bool:  # type: ignore[override]
        """Scaled entries have the right expectation."""
        return self.scaled or self.density == 1

    def pack(self, arrays: Arrays, out: Writer, state: Arrays, sender: Sender) -> Arrays:
        """Write seed and number, and leave the values at the drawn positions."""
        for vector in grouped(arrays, False).values():
            count = num_kept(self.density, len(vector))
            seed = sender.seed("randk")
            out.number(count)
            out.put(seed.to_bytes(8, "little"), "seeds")
            factor = vector.dtype.type(len(vector) / count if self.scaled else 1.0)
            drawn = _drawn(seed, count, len(vector))
            out.standing[TOGETHER] = entries(arrays, drawn)
            return {TOGETHER: vector[drawn] * factor}
        return {}

    def unpack(self, body: Reader, like: Arrays, rest: Rest) -> Arrays:
        """Zeros, and the values at the positions drawn from the seed."""
        size, dtype = total_size(like), common_dtype(like)
        vector = np.zeros(size, dtype)
        if not size:
            return rest({}) or unflatten(vector, like)
        count = body.number(size)
        seed = int.from_bytes(body.take(8), "little")
        vector[_drawn(seed, count, size)] = rest({TOGETHER: np.empty(count, dtype)})[TOGETHER]
        return unflatten(vector, like)

    def alpha(self, like: Arrays) -> float:
        """The share that is kept."""
        size = total_size(like)
        return num_kept(self.density, size) / size if size and self.contraction else 0.0


def _drawn(seed: int, count: int, size: int) -> NDArray[Any]:
    if count == size:
        return np.arange(size)
    return np.sort(np.random.default_rng(seed).choice(size, count, replace=False, shuffle=False))
