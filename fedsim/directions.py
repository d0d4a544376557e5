"""Random directions that are never stored: ``z(seed)`` is computed again wherever it is needed.

Value ``i`` of a direction is entry ``word_i`` of a table, where ``word_0, word_1, ...`` are the
16-bit words of NumPy's Philox 4x64 with the key ``(seed, stream, kind)``. Only integers and table
look-ups are involved, so a value depends on nothing but seed, stream, kind and position: not on the
machine, the number of threads, the shapes of tensors or the release of a library. Sums are made
with separate float32 multiplications and additions in a fixed order, hence they are as exact.

Kinds, all with mean 0 and covariance I except the last:

    gaussian     65,536 quantiles of the normal distribution, scaled to variance 1; |z| <= 4.33
    rademacher   +1 or -1, one bit each
    sphere       gaussian, scaled to the length sqrt(size)
    truncated    the normal distribution cut at +-1/sqrt(size), so that |z| <= 1 (Ferret's bases)

Arrays get their values from the CPU (``fedsim.directions_cpu``), tensors elsewhere, such as on a
GPU, where they are (``fedsim.directions_torch``), by the same arithmetic. J. K. Salmon et al.,
"Parallel random numbers: as easy as 1, 2, 3", SC 2011, https://doi.org/10.1145/2063384.2063405
(Philox).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 1
"""Changes whenever a value changes; stored with whatever must be replayed later."""
BLOCK = 32_768
"""Values in a block; sums over a whole direction are sums over blocks."""
_SHARE = 32 * BLOCK
"""Values that a thread adds at a time."""
ADD_FLOPS = 2
"""Of adding a scaled direction, or of a dot product, for each value; making the values takes
integers and a table, which a clock of FLOPs does not see."""

PHILOX_ROUNDS = 10
PHILOX_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
PHILOX_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
"""What is added to the two words of the key after each round; Philox 4x64-10, as NumPy has it."""

Kind = Literal["gaussian", "rademacher", "sphere", "truncated"]
Vector = NDArray[np.float32]
Target = NDArray[Any] | Mapping[str, NDArray[Any]] | Mapping[str, "Tensor"]
"""A flat vector, or named arrays or tensors that are one vector in their order."""
_LEVELS = 65_536
_KEYS: dict[Kind, int] = {"gaussian": 0, "rademacher": 1, "sphere": 0, "truncated": 3}


@dataclass(frozen=True)
class Directions:
    """Directions of one size; a direction is named by a seed, 0 to 2^64 - 1.

    Args:
        size: Values in a direction.
        kind: Distribution of the values.
        stream: Tells apart directions of equal seeds, such as the layers of a model.
        threads: How many blocks are worked on at once; results do not depend on it.

    >>> Directions(4).values(42).tolist()
    [0.07896953076124191, -0.5178472995758057, 0.014592320658266544, 0.9161294102668762]
    """

    size: int
    kind: Kind = "gaussian"
    stream: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind) or not 0 <= self.stream < 2**48 or self.size < 1:
            raise ValueError(f"{self} needs a known kind, a size and a stream below 2^48")

    @property
    def num_blocks(self) -> int:
        """Blocks in a direction; the last one may be shorter."""
        return -(-self.size // BLOCK)

    def values(self, seed: int) -> Vector:
        """The whole direction; for tests and small sizes."""
        return np.concatenate([self.block(seed, i) for i in range(self.num_blocks)])

    def block(self, seed: int, index: int) -> Vector:
        """Block ``index`` of a direction."""
        values = np.full(min(BLOCK, self.size - index * BLOCK), np.float32(-0.0))
        self._cpu([(seed, np.float32(1))])(values, index * BLOCK)
        return values

    def add(self, x: Target, seed: int, scale: float) -> None:
        """``x += scale * z(seed)`` in place."""
        self.accumulate(x, [seed], [scale])

    def accumulate(self, x: Target, seeds: Sequence[int], scales: Sequence[float]) -> None:
        """``x += sum_k scale_k * z(seed_k)`` in place; the sum is made first, in float32."""
        terms = [(s, np.float32(c)) for s, c in zip(seeds, scales, strict=True) if c]
        pieces = self.slices(x, _SHARE)
        if not terms:
            return
        if tensors := _tensors(x):
            from fedsim import directions_torch

            directions_torch.accumulate(self, tensors, terms)
            return

        adds = self._cpu(terms)

        def work(index: int) -> None:
            start = index * _SHARE
            for part in pieces[index]:
                adds(part, start)
                start += len(part)

        self._each(len(pieces), work)

    def dot(self, x: Target, seeds: Sequence[int]) -> NDArray[np.float64]:
        """``<x, z(seed_k)>`` of every seed; products in float32, sums of blocks in float64."""
        pieces = self.slices(x)
        parts = np.zeros((self.num_blocks, len(seeds)))

        def work(index: int) -> None:
            part = _joined(pieces[index])
            for k, seed in enumerate(seeds):
                parts[index, k] = _sum(np.multiply(self.block(seed, index), part))

        if tensors := _tensors(x):
            from fedsim import directions_torch

            parts = directions_torch.dot(self, tensors, seeds)
        else:
            self._each(self.num_blocks, work)
        result: NDArray[np.float64] = parts.sum(axis=0)
        return result

    def factor(self, seed: int) -> float:
        """What table values are multiplied by: sqrt(size) / length for ``sphere``."""
        return _sphere_factor(self.size, self.stream, seed) if self.kind == "sphere" else 1.0

    def table(self) -> Vector:
        """What words are looked up in: 65,536 values, or the two of ``rademacher``."""
        if self.kind == "rademacher":
            return _signs()
        return _truncated(self.size) if self.kind == "truncated" else _gaussian()

    def key(self, seed: int) -> tuple[int, int]:
        """Philox's key."""
        return seed, self.stream * 256 + _KEYS[self.kind]

    def slices(self, x: Target, length: int = BLOCK) -> list[list[Any]]:
        """The memory of ``x`` below each block, or other stretches, as flat views."""
        arrays = [_flat(a) for a in ([x] if isinstance(x, np.ndarray) else x.values())]
        total = sum(map(len, arrays))
        if total != self.size:
            raise ValueError(f"{total} values are not {self.size}")
        pieces: list[list[Any]] = [[] for _ in range(-(-self.size // length))]
        position = 0
        for flat in arrays:
            for start, stop in _cuts(position, len(flat), length):
                pieces[(position + start) // length].append(flat[start:stop])
            position += len(flat)
        return pieces

    def _cpu(self, terms: Sequence[tuple[int, np.float32]]) -> Callable[[Vector, int], None]:
        """What adds a weighted sum of directions to values that begin at a position."""
        from fedsim import directions_cpu  # loads a compiler

        table = self.table()
        keys = np.array([self.key(seed) for seed, _ in terms], np.uint64)
        factors = np.array([self.factor(seed) for seed, _ in terms], np.float32)
        scales = np.array([scale for _, scale in terms], np.float32)
        return lambda x, start: directions_cpu.accumulate(x, start, table, keys, factors, scales)

    def _each(self, count: int, work: Callable[[int], None]) -> None:
        """Let threads work on ``count`` parts; no two of them write to the same memory."""
        if self.threads == 1 or count == 1:
            for index in range(count):
                work(index)
            return
        with ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(work, range(count)))


def _cuts(position: int, size: int, length: int) -> Iterator[tuple[int, int]]:
    """Where the borders of blocks of a length cut ``size`` values that begin at ``position``."""
    start = 0
    while start < size:
        stop = min(size, start + length - (position + start) % length)
        yield start, stop
        start = stop


def num_values(x: Target) -> int:
    """How long the vector is that ``x`` stands for."""
    parts = [x] if isinstance(x, np.ndarray) else x.values()
    return sum(math.prod(part.shape) for part in parts)


def add(slices: Sequence[Any], values: Vector) -> None:
    """Add a block's values to its slices, in place."""
    offset = 0
    for part in slices:
        some = values[offset : offset + len(part)]
        part += some if isinstance(part, np.ndarray) else part.new_tensor(some)
        offset += len(part)


def _tensors(x: Target) -> list[Tensor]:
    """The tensors of ``x``, in order; none where it is arrays."""
    values = () if isinstance(x, np.ndarray) else x.values()
    return [value for value in values if not isinstance(value, np.ndarray)]


def _flat(x: Any) -> Any:
    """The same memory as one row."""
    array = isinstance(x, np.ndarray)
    if array and x.dtype not in (np.float32, np.float64):
        raise ValueError(f"directions are added to float32 or float64 arrays, not to {x.dtype}")
    if not (x.flags.c_contiguous if array else x.is_contiguous()):
        raise ValueError("directions are added to contiguous arrays only")
    return x.reshape(-1) if array else x.detach().view(-1)


def _joined(slices: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return slices[0] if len(slices) == 1 else np.concatenate(slices)


def _sum(values: NDArray[Any]) -> float:
    """Sum in an order that no library decides: 256 at a time by NumPy, the rest in float64."""
    whole = values.size - values.size % 256
    rows = values[:whole].reshape(-1, 256).sum(axis=1)
    return math.fsum(rows.tolist()) + math.fsum(values[whole:].tolist())


@cache
def _gaussian() -> Vector:
    """Quantiles of the normal distribution at the middles of 65,536 equal parts."""
    normal = NormalDist()
    upper = [normal.inv_cdf(0.5 + (i + 0.5) / _LEVELS) for i in range(_LEVELS // 2)]
    scale = math.sqrt(len(upper) / math.fsum(q * q for q in upper))
    half = np.array([q * scale for q in upper], np.float32)
    return np.concatenate([-half[::-1], half])


@lru_cache(maxsize=64)
def _truncated(size: int) -> Vector:
    """Quantiles of the normal distribution between +-1/sqrt(size)."""
    from scipy.special import erf, erfinv

    levels = (np.arange(_LEVELS // 2) + 0.5) / (_LEVELS // 2)
    half = math.sqrt(2) * erfinv(levels * erf(1 / math.sqrt(2 * size)))
    return np.concatenate([-half[::-1], half]).astype(np.float32)


def truncated_variance(size: int) -> float:
    """Variance of an entry of a ``truncated`` direction; near ``1 / (3 size)``.

    >>> round(truncated_variance(256), 8)
    0.00130141
    """
    a = 1 / math.sqrt(size)
    density = math.exp(-a * a / 2) / math.sqrt(2 * math.pi)
    return 1 - 2 * a * density / math.erf(a / math.sqrt(2))


@cache
def _signs() -> Vector:
    return np.array([-1, 1], np.float32)


@lru_cache(maxsize=1024)
def _sphere_factor(size: int, stream: int, seed: int) -> float:
    plain = Directions(size, "gaussian", stream)
    squares = [_sum(np.square(plain.block(seed, i))) for i in range(plain.num_blocks)]
    return math.sqrt(size / math.fsum(squares))
