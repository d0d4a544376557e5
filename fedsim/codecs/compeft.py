"""ComPEFT: the signs of the largest entries, and one number for their size.

    keep the k = max(1, round(density * n)) largest |x_i| of all arrays together
    C(x)_i = s sign(x_i) for those, else 0;   s = alpha * std(x), or mean of the kept |x_i|

P. Yadav, L. Choshen, C. Raffel, M. Bansal, "ComPEFT: Compression for Communicating Parameter
Efficient Updates via Sparsification and Quantization", 2023, https://arxiv.org/abs/2311.13171. The
scale ``mean`` is STC (F. Sattler et al., 2019, https://arxiv.org/abs/1903.02891), which contracts.
Against the released code: exactly k entries are kept, of equal magnitudes the first; the standard
deviation (unbiased) travels as float32, two bytes more than the paper counts. Signs take a bit
each, positions the shortest of four codes (mostly Golomb-Rice, as in the paper's formula).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat

from fedsim.arrays import Arrays
from fedsim.bitstrings import num_packed
from fedsim.codec import Codec, Reader, Rest, Sender, Writer
from fedsim.codecs._indices import read_indices, write_indices
from fedsim.codecs._sparse import TOGETHER, entries, largest, num_kept
from fedsim.codecs._vectors import (
    common_dtype,
    finite_scale,
    flatten,
    narrow,
    total_size,
    unflatten,
    wide,
)


@dataclass(frozen=True, kw_only=True)
class ComPEFT(Codec):
    """Ternary updates with one scale.

    Args:
        density: Share of the entries that is kept, in (0, 1].
        scale: ``sigma``, the standard deviation of all entries times ``alpha``, or ``mean``, the
            mean magnitude of the kept ones.
        factor: The paper's alpha: how many standard deviations; with ``mean``, a plain factor.
    """

    density: Annotated[float, Field(gt=0, le=1)] = 0.05
    scale: Literal["sigma", "mean"] = "sigma"
    factor: PositiveFloat = 1.0

    @property
    def contraction(self) -> bool:  # type: ignore[override]
        """The mean magnitude contracts; standard deviations may be too large."""
        return self.scale == "mean" and self.factor == 1

    def pack(self, arrays: Arrays, out: Writer, state: Arrays, sender: Sender) -> Arrays:
        """Write the scale, the positions and the signs."""
        if not total_size(arrays):
            return {}
        flat = wide(flatten(arrays))
        kept = largest(flat, num_kept(self.density, flat.size))
        kept = kept[flat[kept] != 0]
        scale = self._scale(flat, flat[kept])
        out.put(np.asarray(finite_scale(scale, "scale"), flat.dtype), "scales")
        out.about, out.standing[TOGETHER] = TOGETHER, entries(arrays, kept)
        write_indices(out, kept, flat.size)
        out.put(np.packbits(flat[kept] > 0), "values")
        return {}

    def unpack(self, body: Reader, like: Arrays, rest: Rest) -> Arrays:
        """Plus or minus the scale at the positions."""
        size = total_size(like)
        vector = np.zeros(size, wide(np.empty(0, common_dtype(like))).dtype)
        if size:
            scale = body.array(vector.dtype, 1)
            kept = read_indices(body, size)
            signs = np.unpackbits(body.array(np.uint8, num_packed(len(kept), 1)), count=len(kept))
            vector[kept] = np.concatenate([-scale, scale])[signs]
        rest({})
        return unflatten(narrow(vector, common_dtype(like)), like)

    def alpha(self, like: Arrays) -> float:
        """The largest entries hold at least their share, of which the mean keeps ``1/k``."""
        return 1 / max(1, total_size(like)) if self.contraction else 0.0

    def _scale(self, flat: NDArray[Any], kept: NDArray[Any]) -> float:
        if not kept.size:
            return 0.0
        if self.scale == "mean" or flat.size == 1:  # one value has no deviation
            return self.factor * float(np.abs(kept).mean(dtype=np.float64))
        return self.factor * float(np.std(flat, ddof=1, dtype=np.float64))
