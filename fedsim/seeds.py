"""Named random streams of one seed: every draw of a run comes from here.

A stream is a pure function of (root seed, name parts). It does not depend on how many draws
other streams made, on the worker, or on time; this is what makes equal seeds give equal bits.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

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
