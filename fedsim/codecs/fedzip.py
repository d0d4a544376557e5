"""FedZip: the largest entries of each array, three centroids, the cheapest of three encodings.

    keep |x_i| >= the z n-th largest of its array;  k-means with 3 clusters, zeros included
    huffman     1 bit for the largest cluster, 2 for the others
    addresses   fixed-width positions of the two smaller clusters
    differences gaps between those positions in Elias-gamma codes

A. Malekijoo, M. J. Fadaeieslam, H. Malekijou, M. Homayounfar, F. Alizadeh-Shabdiz, R. Rawassizadeh,
"FEDZIP: A Compression Framework for Communication-Efficient Federated Learning", 2021,
https://arxiv.org/abs/2102.01593. Differences to the released code, which counts bits but encodes
nothing: codes are decodable (a prefix code; gaps with their lengths; addresses of ceil(log2 n)
bits); the centroid of the pruned entries is 0; an empty cluster keeps its centroid; biases (one
dimension) are not pruned; arrays of fewer than ``min_size`` entries are sent as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt

from fedsim.arrays import Arrays
from fedsim.codec import Codec, Reader, Rest, Sender, Writer
from fedsim.codecs._codebooks import pack_labelled, unpack_labelled
from fedsim.codecs._labels import read_labels, write_labels
from fedsim.codecs._sparse import largest, num_kept
from fedsim.codecs._vectors import wide
from fedsim.codecs.kmeans import cluster

CLUSTERS = 3


@dataclass(frozen=True, kw_only=True)
class FedZip(Codec):
    """The paper's whole chain; no other codec can follow.

    Args:
        kept: Share z of the entries of each array that is not pruned, in (0, 1].
        iterations: Of k-means.
        min_size: Arrays of fewer entries are sent as they are.
    """

    contraction = True

    kept: Annotated[float, Field(gt=0, le=1)] = 0.2
    iterations: Annotated[int, Field(ge=1)] = 4
    min_size: NonNegativeInt = 64

    def pack(self, arrays: Arrays, out: Writer, state: Arrays, sender: Sender) -> Arrays:
        """Write centroids and labels of each array; leave small ones."""
        return pack_labelled(arrays, out, self.min_size, self._quantised, write_labels)

    def unpack(self, body: Reader, like: Arrays, rest: Rest) -> Arrays:
        """The centroid of each label."""
        return unpack_labelled(body, like, rest, CLUSTERS, read_labels)

    def _quantised(self, x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        flat = wide(x)
        pruned = flat
        if x.ndim > 1 and self.kept < 1:
            positions = largest(flat, num_kept(self.kept, flat.size))
            pruned = np.zeros_like(flat)
            pruned[positions] = flat[positions]
        labels, centroids = cluster(pruned, CLUSTERS, self.iterations)
        if pruned is not flat:
            centroids[labels[np.argmin(np.abs(pruned))]] = 0  # the cluster of the pruned entries
        return labels, centroids
