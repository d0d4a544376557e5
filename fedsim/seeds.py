"""Named random streams of one seed: every draw of a run comes from here.

A stream is a pure function of (root seed, name parts). It does not depend on how many draws
other streams made, on the worker, or on time; this is what makes equal seeds give equal bits.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Seeds:
    """The streams of one root seed.

    >>> Seeds(0).numpy("cohort", 3).integers(100) == Seeds(0).numpy("cohort", 3).integers(100)
    np.True_
    """

    root: int

    def integer(self, *name: str | int) -> int:
        """A 63-bit seed for the stream called ``name`` (strings and integers)."""
        text = "\0".join(f"{type(part).__name__}:{part}" for part in (self.root, *name))
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1

    def numpy(self, *name: str | int) -> np.random.Generator:
        """A NumPy generator for the stream called ``name``."""
        return np.random.default_rng(self.integer(*name))

    def uniforms(self, name: str, *index: int | NDArray[np.int64]) -> NDArray[np.float64]:
        """Uniform draws in (0, 1), one for each tuple of integers; arrays broadcast.

        Draws of other tuples are not made on the way, so that any of a million clients costs the
        same: the bits are a hash (splitmix64) of stream and tuple.

        >>> bool(Seeds(0).uniforms("x", np.arange(5))[3] == Seeds(0).uniforms("x", 3))
        True
        """
        with np.errstate(over="ignore"):
            bits = np.uint64(self.integer(name))
            for part in index:
                bits = _splitmix64(bits ^ _splitmix64(np.asarray(part).astype(np.uint64)))
        return np.asarray(((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53)

    def normals(self, name: str, *index: int | NDArray[np.int64]) -> NDArray[np.float64]:
        """Standard normal draws, one for each tuple of integers, as ``uniforms`` are."""
        from scipy.special import ndtri

        return np.asarray(ndtri(self.uniforms(name, *index)))

    def torch(self, *name: str | int) -> torch.Generator:
        """A CPU torch generator for the stream called ``name``."""
        import torch

        return torch.Generator().manual_seed(self.integer(*name))

    def seed_globals(self, *name: str | int, with_torch: bool = True) -> None:
        """Seed the global generators of Python, NumPy and torch, which library code draws from."""
        value = self.integer(*name)
        random.seed(value)
        np.random.seed(value % 2**32)  # noqa: NPY002  (stock strategies draw from it)
        if with_torch:
            import torch

            # torch.manual_seed also queues calls for accelerators, at a hundred times the price
            torch.default_generator.manual_seed(value)
            if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                torch.cuda.manual_seed(value)


def _splitmix64(x: Any) -> Any:
    """The mixing function of Steele et al. 2014 on unsigned 64-bit integers."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
