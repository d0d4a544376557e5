"""PowerSGD: a low-rank factorisation of each matrix by one warm-started power iteration.

    P = orthonormalise(M Q);  Q = M^T P;  C(M) = P Q^T          r (n + m) values instead of n m

T. Vogels, S. P. Karimireddy, M. Jaggi, "PowerSGD: Practical Low-Rank Gradient Compression for
Distributed Optimization", NeurIPS 2019, https://arxiv.org/abs/1905.13727. Each client sends its own
factors (one upload cannot all-reduce twice). ``C(M) = P P^T M`` is a projection, so it contracts;
by how much depends on M. Arrays of more than two dimensions are taken as (first, rest). What a
factorisation would not make smaller goes to the next codec as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedsim.arrays import Arrays
from fedsim.codec import Codec, Reader, Rest, Sender, Stage, Writer
from fedsim.codecs._vectors import narrow, wide, wide_dtype
from fedsim.errors import PluginError

MOST = 2**20


@dataclass(frozen=True, kw_only=True)
class PowerSGD(Codec):
    """Factors of rank ``rank``; the sender keeps Q as the start of its next message.

    Args:
        rank: Columns of P and Q.
        warm_start: Keep Q between messages; else it is drawn anew.
        iterations: Power iterations for each message.
    """

    stage: ClassVar[Stage] = "transform"
    planned = "rank"
    contraction = True

    rank: Annotated[int, Field(ge=1, le=MOST)] = 4
    warm_start: bool = True
    iterations: Annotated[int, Field(ge=1)] = 1

    @property
    def stateful(self) -> bool:  # type: ignore[override]
        """Q is kept between messages."""
        return self.warm_start

    def pack(self, arrays: Arrays, out: Writer, state: Arrays, sender: Sender) -> Arrays:
        """Write each array's rank (0 for none) and leave its factors, or its values."""
        rng = sender.rng("powersgd")
        left: Arrays = {}
        for name, x in arrays.items():
            out.about = name
            rank = int(sender.plan.get(name, self.rank))
            if not pays(x, rank):
                out.number(0)
                left[name] = x
                continue
            out.number(rank)
            matrix = wide(x).reshape(x.shape[0], -1)
            start = state.get(f"powersgd/{name}") if self.warm_start else None
            p, q = self._factors(matrix, _started(start, matrix, rank, rng))
            if self.warm_start:
                state[f"powersgd/{name}"] = q
            left |= {f"{name}/p": p, f"{name}/q": q}
            out.standing |= {f"{name}/p": {name: 1}, f"{name}/q": {name: 1}}
        return left

    def unpack(self, body: Reader, like: Arrays, rest: Rest) -> Arrays:
        """Multiply the factors."""
        layout: Arrays = {}
        ranks = {name: body.number(min(MOST, x.size)) for name, x in like.items()}
        for name, x in like.items():
            if not ranks[name]:
                layout[name] = x
                continue
            if not pays(x, ranks[name]):
                raise ValueError(f"a rank of {ranks[name]} for an array of shape {x.shape}")
            rows = x.shape[0]
            layout[f"{name}/p"] = np.empty((rows, ranks[name]), wide_dtype(x))
            layout[f"{name}/q"] = np.empty((x.size // rows, ranks[name]), wide_dtype(x))
        values = rest(layout)
        result: Arrays = {}
        for name, x in like.items():
            if ranks[name]:
                product = values[f"{name}/p"] @ values[f"{name}/q"].T
                result[name] = narrow(product, x.dtype).reshape(x.shape)
            else:
                result[name] = values[name]
        return result

    def check(self, like: Arrays) -> None:
        """Refuse a rank that makes no matrix smaller.

        Raises:
            PluginError: With the largest rank that would.
        """
        if not any(pays(x, self.rank) for x in like.values()):
            most = max((_most_rank(x) for x in like.values()), default=0)
            raise PluginError(
                f"rank {self.rank} makes no array of this model smaller",
                key=("rank",),
                allowed=f"At most {most}" if most else "The model has no matrix to factorise",
            )

    def candidates(self) -> tuple[float, ...]:
        """Ranks from half to twice the own one, 66 at most."""
        low, high = max(1, self.rank // 2), 2 * self.rank
        return tuple(sorted({self.rank, *range(low, high + 1, 1 + (high - low) // 64)}))

    def _factors(self, matrix: NDArray[Any], q: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        p = q
        for _ in range(self.iterations):
            p = np.linalg.qr(matrix @ q)[0]
            q = matrix.T @ p
        return np.ascontiguousarray(p), np.ascontiguousarray(q)


def pays(x: NDArray[Any], rank: int) -> bool:
    """Whether factors of this rank are smaller than the array."""
    return 0 < rank <= _most_rank(x)


def _most_rank(x: NDArray[Any]) -> int:
    if x.ndim < 2 or not x.size:
        return 0
    rows, columns = x.shape[0], x.size // x.shape[0]
    return int((rows * columns - 1) // (rows + columns))


def _started(
    kept: NDArray[Any] | None, matrix: NDArray[Any], rank: int, rng: np.random.Generator
) -> NDArray[Any]:
    """The Q to start from: the kept columns, as many as wanted, others drawn."""
    q = rng.standard_normal((matrix.shape[1], rank)).astype(matrix.dtype)
    if kept is not None:
        columns = min(rank, kept.shape[1])
        alive = np.abs(kept[:, :columns]).max(axis=0) > 0
        q[:, :columns][:, alive] = kept[:, :columns][:, alive]
    return q
