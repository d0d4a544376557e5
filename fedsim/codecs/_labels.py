"""FedZip's three encodings of cluster labels, and the choice of the cheapest."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim import bitstrings
from fedsim.codec import Reader, Writer
from fedsim.errors import PayloadError

Labels = NDArray[Any]
HUFFMAN, ADDRESSES, DIFFERENCES = range(3)
NAMES = ("huffman", "addresses", "differences")


def encoded_bits(labels: Labels, clusters: int) -> dict[int, int]:
    """Bits of each encoding, without centroids, counts and other headers."""
    counts = np.bincount(labels, minlength=clusters)
    main = int(counts.argmax())
    others = len(labels) - int(counts[main])
    gaps = [np.diff(np.flatnonzero(labels == c), prepend=-1) for c in _small(main, clusters)]
    return {
        HUFFMAN: len(labels) + (others if clusters > 2 else 0) if clusters > 1 else 0,
        ADDRESSES: others * bitstrings.width_of(len(labels) - 1),
        DIFFERENCES: sum(bitstrings.gamma_bits(g) for g in gaps),
    }


def write_labels(out: Writer, labels: Labels, clusters: int) -> None:
    """Write labels 0 to ``clusters - 1`` (at most 3) in the cheapest encoding."""
    counts = np.bincount(labels, minlength=clusters)
    main = int(counts.argmax())
    bits = encoded_bits(labels, clusters)
    best = min(bits, key=lambda encoding: bits[encoding])
    out.number(best * 3 + main)
    if best == HUFFMAN:
        _write_huffman(out, labels, main, clusters)
        return
    for c in _small(main, clusters):
        positions = np.flatnonzero(labels == c)
        out.number(len(positions))
        if best == ADDRESSES:
            width = bitstrings.width_of(len(labels) - 1)
            out.put(bitstrings.pack_bits(positions, width), "indices")
        else:
            unary, digits = bitstrings.pack_gamma(np.diff(positions, prepend=-1))
            out.number(len(unary))
            out.put(unary, "indices")
            out.put(digits, "indices")


def read_labels(body: Reader, size: int, clusters: int) -> Labels:
    """The labels that ``write_labels`` wrote.

    Raises:
        PayloadError: They are no labels.
    """
    encoding, main = divmod(body.number(8), 3)
    if main >= clusters:
        raise PayloadError("payload body names a cluster that does not exist")
    if encoding == HUFFMAN:
        return _read_huffman(body, size, main, clusters)
    labels = np.full(size, main, np.int32)
    for c in _small(main, clusters):
        count = body.number(size)
        if encoding == ADDRESSES:
            width = bitstrings.width_of(size - 1)
            data = body.array(np.uint8, bitstrings.num_packed(count, width))
            labels[bitstrings.unpack_bits(data, count, width)] = c
        else:
            labels[_read_gaps(body, count)] = c
    return labels


def _small(main: int, clusters: int) -> list[int]:
    return [c for c in range(clusters) if c != main]


def _write_huffman(out: Writer, labels: Labels, main: int, clusters: int) -> None:
    """A bit that tells the largest cluster, and a second one where it is another of two."""
    if clusters == 1:
        return
    is_other = labels != main
    out.put(np.packbits(is_other), "values")
    if clusters > 2:
        out.put(np.packbits(labels[is_other] == _small(main, clusters)[1]), "values")


def _read_huffman(body: Reader, size: int, main: int, clusters: int) -> Labels:
    labels = np.full(size, main, np.int32)
    if clusters == 1:
        return labels
    data = body.array(np.uint8, bitstrings.num_packed(size, 1))
    others = np.flatnonzero(np.unpackbits(data, count=size))
    small = np.array(_small(main, clusters), np.int32)
    if clusters == 2:
        labels[others] = small[0]
        return labels
    second = body.array(np.uint8, bitstrings.num_packed(len(others), 1))
    labels[others] = small[np.unpackbits(second, count=len(others))]
    return labels


def _read_gaps(body: Reader, count: int) -> Labels:
    unary = body.array(np.uint8, body.number(2**40))
    digits = body.array(np.uint8, bitstrings.num_packed(bitstrings.gamma_digits(unary, count), 1))
    return np.cumsum(bitstrings.unpack_gamma(unary, digits, count)) - 1
