"""k-means: the entries of each array become the means of a few clusters.

    start: centroids evenly between minimum and maximum;  repeat: nearest centroid, then means
    C(x)_i = mean of its cluster;   |C(x) - x|^2 = |x|^2 - sum_c n_c c^2

The quantiser of FedZip (A. Malekijoo et al., 2021, https://arxiv.org/abs/2102.01593) for any number
of clusters, with two differences: an empty cluster keeps its centroid, and the centroids sent are
the means of the last assignment. Labels are entropy-coded. Arrays of fewer than ``min_size``
entries go to the next codec as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt

from fedsim.arrays import Arrays
from fedsim.codec import Codec, Reader, Rest, Sender, Stage, Writer
from fedsim.codecs._codebooks import pack_labelled, unpack_labelled
from fedsim.codecs._symbols import read_symbols, write_symbols
from fedsim.codecs._vectors import wide

MOST_COMPARISONS = 32
"""With more bounds than these, a search is faster than one comparison after the other."""
MOST_CLUSTERS = 2**12


@dataclass(frozen=True, kw_only=True)
class KMeans(Codec):
    """A codebook for each array.

    Args:
        clusters: Number of centroids.
        iterations: Assignments.
        min_size: Arrays of fewer entries are not quantised.
    """

    stage: ClassVar[Stage] = "quantise"
    contraction = True

    clusters: Annotated[int, Field(ge=2, le=MOST_CLUSTERS)] = 16
    iterations: Annotated[int, Field(ge=1)] = 10
    min_size: NonNegativeInt = 64

    def pack(self, arrays: Arrays, out: Writer, state: Arrays, sender: Sender) -> Arrays:
        """Write centroids and labels; leave small arrays."""

        def quantise(x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
            return cluster(wide(x), self.clusters, self.iterations)

        return pack_labelled(arrays, out, self.min_size, quantise, write_symbols)

    def unpack(self, body: Reader, like: Arrays, rest: Rest) -> Arrays:
        """The centroid of each label."""
        return unpack_labelled(body, like, rest, MOST_CLUSTERS, read_symbols)


def cluster(x: NDArray[Any], clusters: int, iterations: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Labels and centroids, in ascending order; one centroid when all entries are equal.

    >>> labels, centroids = cluster(np.float32([0, 0, 0, 5, -4, 6, -6]), 3, 4)
    >>> labels.tolist(), centroids.tolist()
    ([1, 1, 1, 2, 0, 2, 0], [-5.0, 0.0, 5.5])
    """
    ordered = np.sort(x)
    low, high = float(ordered[0]), float(ordered[-1])
    if low == high:
        return np.zeros(x.size, np.int32), x[:1].copy()
    # in sorted order a cluster is a stretch, whose sum is a difference of two running sums
    running = np.concatenate([[0.0], np.cumsum(ordered, dtype=np.float64)])
    centroids = np.linspace(low, high, clusters)
    for _ in range(iterations):
        bounds = (centroids[1:] + centroids[:-1]) / 2
        ends = [0, *np.searchsorted(ordered, bounds, side="right"), x.size]
        counts, sums = np.diff(ends), np.diff(running[ends])
        centroids = np.where(counts > 0, sums / np.maximum(counts, 1), centroids)
    return _labels(x, bounds), centroids.astype(x.dtype)


def _labels(x: NDArray[Any], bounds: NDArray[np.float64]) -> NDArray[Any]:
    """How many of the ascending bounds lie below each value."""
    if len(bounds) > MOST_COMPARISONS:
        return np.searchsorted(bounds, x).astype(np.int32)
    labels = np.zeros(x.size, np.uint8)
    for bound in bounds:
        below = bound.astype(x.dtype)  # compare in the values' own type, which is faster
        labels += x > (np.nextafter(below, x.dtype.type(-np.inf)) if below > bound else below)
    return labels.astype(np.int32)
