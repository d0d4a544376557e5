"""Top-k: the entries of largest magnitude, and where they are.

    C(x)_i = x_i if |x_i| is among the k largest, else 0;  k = max(1, round(density * n))
    |C(x) - x|^2 <= (1 - k/n) |x|^2

D. Alistarh et al., "The Convergence of Sparsified Gradient Methods", NeurIPS 2018,
https://arxiv.org/abs/1809.10505; S. Stich et al., "Sparsified SGD with Memory", NeurIPS 2018,
https://arxiv.org/abs/1809.07599. Of equal magnitudes the first is kept, so that exactly k travel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from fedsim.arrays import Arrays
from fedsim.codec import Codec, Reader, Rest, Sender, Stage, Writer
from fedsim.codecs._sparse import grouped, largest, num_kept, pack_kept, unpack_kept


@dataclass(frozen=True, kw_only=True)
class TopK(Codec):
    """Keep the largest entries; the values left go to the next codec of the chain.

    Args:
        density: Share of the entries that is kept, in (0, 1].
        per_layer: Choose within each array instead of among all entries together.
    """

    stage: ClassVar[Stage] = "sparsify"
    planned = "density"
    contraction = True

    density: Annotated[float, Field(gt=0, le=1)] = 0.01
    per_layer: bool = False

    def pack(self, arrays: Arrays, out: Writer, state: Arrays, sender: Sender) -> Arrays:
        """Write the positions of the largest entries and leave their values."""
        plan = sender.plan
        return pack_kept(
            arrays,
            out,
            self.per_layer or bool(plan),
            lambda name, x: largest(x, num_kept(plan.get(name, self.density), len(x))),
        )

    def unpack(self, body: Reader, like: Arrays, rest: Rest) -> Arrays:
        """Zeros, and the values at their positions."""
        return unpack_kept(body, like, rest)

    def alpha(self, like: Arrays) -> float:
        """The smallest share that is kept of any vector."""
        sizes = [len(x) for x in grouped(like, self.per_layer).values()]
        return min((num_kept(self.density, n) / n for n in sizes), default=1.0)

    def candidates(self) -> tuple[float, ...]:
        """21 densities from a tenth to ten times the own one, evenly on a logarithmic scale."""
        return tuple(min(1.0, self.density * 10 ** (i / 10)) for i in range(-10, 11))
