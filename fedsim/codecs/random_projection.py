"""Random projection onto sums of randomly chosen entries with random signs.

    y_b = sum of s_i x_i over i in bucket b;  C(x)_i = s_i y_b(i) / |b(i)|
    unbiased: C(x)_i = s_i y_b(i)

M. Charikar, K. Chen, M. Farach-Colton, "Finding Frequent Items in Data Streams", 2002 (one row of a
count sketch); D. Achlioptas, "Database-friendly random projections", 2003. Seed and sums travel.
All senders of a round share the seed, so sketches may be added: C is linear. Divided by the bucket
sizes it is an orthogonal projection and contracts by ``(k/n) (1 - (1 - 1/k)^n)`` in the mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedsim.arrays import Arrays
from fedsim.codec import Codec, Reader, Rest, Sender, Stage, Writer
from fedsim.codecs._sparse import TOGETHER, entries, num_kept
from fedsim.codecs._vectors import common_dtype, flatten, narrow, total_size, unflatten, wide


@dataclass(frozen=True, kw_only=True)
class RandomProjection(Codec):
    """Coordinates in a random basis that all senders of a round share.

    Args:
        density: Number of coordinates as a share of the entries, in (0, 1].
        scaled: Undo the shrinking: unbiased, but unfit for error feedback.
    """

    stage: ClassVar[Stage] = "transform"
    linear = True

    density: Annotated[float, Field(gt=0, le=1)] = 0.1
    scaled: bool = False

    @property
    def contraction(self) -> bool:  # type: ignore[override]
        """An orthogonal projection contracts."""
        return not self.scaled

    @property
    def unbiased(self) -> bool:  # type: ignore[override]
        """Scaled sums have the right expectation."""
        return self.scaled

    def pack(self, arrays: Arrays, out: Writer, state: Arrays, sender: Sender) -> Arrays:
        """Write the seed and leave the sums."""
        size = total_size(arrays)
        if not size:
            return {}
        count = num_kept(self.density, size)
        seed = sender.common_seed("random_projection")
        out.number(int(self.scaled))
        out.number(count)
        out.put(seed.to_bytes(8, "little"), "seeds")
        out.standing[TOGETHER] = entries(arrays)
        buckets, signs = _basis(seed, count, size)
        flat = wide(flatten(arrays))
        sums = np.bincount(buckets, signs * flat, minlength=count)
        return {TOGETHER: sums.astype(flat.dtype)}

    def unpack(self, body: Reader, like: Arrays, rest: Rest) -> Arrays:
        """Give every entry its bucket's sum, or mean, with its own sign."""
        size = total_size(like)
        if not size:
            return rest({}) or {name: np.zeros_like(x) for name, x in like.items()}
        scaled, count = body.number(1), body.number(size)
        seed = int.from_bytes(body.take(8), "little")
        dtype = wide(np.empty(0, common_dtype(like))).dtype
        sums = rest({TOGETHER: np.empty(count, dtype)})[TOGETHER]
        buckets, signs = _basis(seed, count, size)
        if not scaled:
            sums = sums / np.maximum(1, np.bincount(buckets, minlength=count))
        return unflatten(narrow(signs * sums[buckets], dtype), like)

    def alpha(self, like: Arrays) -> float:
        """Mean share of the squared norm that is kept."""
        size = total_size(like)
        if not size or self.scaled:
            return 0.0
        count = num_kept(self.density, size)
        return count / size * (1 - (1 - 1 / count) ** size)


def _basis(seed: int, count: int, size: int) -> tuple[NDArray[Any], NDArray[np.int8]]:
    """Bucket and sign of each entry."""
    rng = np.random.default_rng(seed)
    buckets = rng.integers(0, count, size)
    return buckets, 2 * rng.integers(0, 2, size, dtype=np.int8) - 1
