"""ComPEFT and FedZip against their specifications: toys, tables, ratios, encodings."""

import numpy as np
import pytest

from fedsim import bitstrings
from fedsim.chain import build_chain
from fedsim.codec import HEADER, Payload, Reader, Writer
from fedsim.codecs import _labels
from fedsim.codecs._indices import read_indices, write_indices
from fedsim.codecs._symbols import entropy_bits
from fedsim.codecs.kmeans import cluster

TAU = np.float32([0.9, -0.1, 0.05, -1.2, 0.3, 0.02, -0.4, 0.6, -0.05, 0.1])


def decoded(section, x):
    codec = build_chain([section])
    payload = codec.encode({"w": x}, {})
    return payload, codec.decode(Payload(payload.data), {"w": x})["w"]


def test_compeft_on_the_toy():
    _, y = decoded({"name": "compeft", "density": 0.2, "factor": 2.0}, TAU)
    expected = np.zeros(10)
    expected[[0, 3]] = 1.131481, -1.131481
    np.testing.assert_allclose(y, expected, atol=1e-6)


def test_compeft_with_the_mean_is_stc():
    _, y = decoded({"name": "compeft", "density": 0.2, "scale": "mean"}, TAU)
    np.testing.assert_allclose(y[[0, 3]], [1.05, -1.05], rtol=1e-6)
    chain = build_chain([{"name": "topk", "density": 0.2}, {"name": "sign"}])
    same = chain.decode(chain.encode({"w": TAU}, {}), {"w": TAU})["w"]
    np.testing.assert_allclose(y, same, rtol=1e-6)


def test_compeft_at_density_one_is_one_bit_with_one_scale():
    _, y = decoded({"name": "compeft", "density": 1.0}, TAU)
    np.testing.assert_allclose(y, np.sign(TAU) * TAU.std(ddof=1), rtol=1e-6)


GOLOMB = {
    0.01: (6, 0.0911),
    0.05: (4, 0.3393),
    0.1: (3, 0.5756),
    0.2: (2, 0.9388),
    0.3: (1, 1.1882),
}
ENTROPY = {0.01: 0.0908, 0.05: 0.3364, 0.1: 0.5690, 0.2: 0.9219, 0.3: 1.1813, 0.5: 1.5}


@pytest.mark.parametrize("density", ENTROPY)
def test_entropy_of_ternary_updates_is_the_papers(density):
    counts = np.array([1 - density, density / 2, density / 2])
    assert entropy_bits(counts) == pytest.approx(ENTROPY[density], abs=5e-5)


@pytest.mark.parametrize("density", GOLOMB)
def test_compeft_takes_the_golomb_formula(density):
    """Within 3 % of formula and entropy, header included, for half a million entries."""
    width, bits = GOLOMB[density]
    assert bitstrings.best_rice_width(density) == width
    n = 500_000
    x = np.random.default_rng(1).standard_normal(n).astype(np.float32)
    payload, _ = decoded({"name": "compeft", "density": density}, x)
    assert payload.num_bytes * 8 / n <= 1.03 * min(bits, ENTROPY[density])


@pytest.mark.parametrize(("density", "ratio"), [(0.05, 85), (0.01, 300)])
def test_compeft_ratios_against_float32(density, ratio):
    n = 1_000_000
    x = np.random.default_rng(2).standard_t(4, n).astype(np.float32)
    payload, _ = decoded({"name": "compeft", "density": density}, x)
    assert 4 * n / payload.num_bytes >= ratio


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("n", [1, 2, 63, 1000, 100_000])
def test_positions_survive_every_code(n, share):
    rng = np.random.default_rng(n)
    for positions in (np.flatnonzero(rng.random(n) < share), np.arange(int(n * share))):
        out = Writer()
        write_indices(out, positions, n)
        body = Reader(memoryview(b"".join(out.chunks)))
        np.testing.assert_array_equal(read_indices(body, n), positions)
        body.finish()


TOY = np.zeros(16, np.float32)
TOY[[3, 5, 7, 11]] = 5, -4, 6, -6


def test_fedzip_on_the_toy():
    labels, centroids = cluster(TOY, 3, 4)
    assert centroids.tolist() == [-5, 0, 5.5]
    assert np.bincount(labels).tolist() == [2, 12, 2]
    assert _labels.encoded_bits(labels, 3) == {
        _labels.HUFFMAN: 20,
        _labels.ADDRESSES: 16,
        _labels.DIFFERENCES: 20,
    }
    section = {"name": "fedzip", "kept": 0.25, "min_size": 1}
    payload, y = decoded(section, TOY.reshape(4, 4))
    expected = np.zeros(16)
    expected[[3, 7]], expected[[5, 11]] = 5.5, -5
    np.testing.assert_array_equal(y.ravel(), expected)
    assert payload.parts["scales"] == 12
    assert payload.parts["indices"] == 2  # 2 x 4 bits, twice


def label_arrays():
    rng = np.random.default_rng(0)
    for n in (1, 2, 17, 1000):
        yield rng.integers(0, 3, n)
        yield np.zeros(n, int)
        yield np.arange(n) % 2
        yield np.eye(1, n, n // 2, dtype=int)[0] * 2
        yield np.where(rng.random(n) < 0.02, rng.integers(1, 3, n), 0)


@pytest.mark.parametrize("encoding", _labels.NAMES)
def test_each_encoding_gives_labels_back_in_the_bits_it_promises(encoding, monkeypatch):
    wanted = _labels.NAMES.index(encoding)
    count = _labels.encoded_bits
    for labels in label_arrays():
        cheap = {**count(labels, 3), wanted: -1}
        monkeypatch.setattr(_labels, "encoded_bits", lambda *_, cheap=cheap: cheap)
        out = Writer()
        _labels.write_labels(out, labels, 3)
        body = Reader(memoryview(b"".join(out.chunks)))
        np.testing.assert_array_equal(_labels.read_labels(body, len(labels), 3), labels)
        body.finish()
        payload = out.parts.get("values", 0) + out.parts.get("indices", 0)
        assert payload <= -(-count(labels, 3)[wanted] // 8) + 3


def test_the_cheapest_encoding_is_chosen():
    for labels in label_arrays():
        out = Writer()
        _labels.write_labels(out, labels, 3)
        bits = _labels.encoded_bits(labels, 3)
        assert out.chunks[0][0] // 3 == min(bits, key=lambda e: bits[e])


CHOICES = {1.0: "huffman", 0.2: "differences", 0.02: "differences", 0.001: "addresses"}
"""Elias-gamma codes of long gaps are longer than plain addresses of 18 bits."""


@pytest.mark.parametrize("kept", CHOICES)
def test_fedzip_chooses_by_density_and_never_beats_its_bounds(kept):
    """Huffman lies between 1 and 5/3 bits an entry; only sparse labels compress further."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 500)).astype(np.float32)
    payload, y = decoded({"name": "fedzip", "kept": kept}, x)
    labels = np.unique(y, return_inverse=True)[1].ravel()
    bits = _labels.encoded_bits(labels, 3)
    assert _labels.NAMES[min(bits, key=lambda e: bits[e])] == CHOICES[kept]
    ratio = 4 * x.size / payload.num_bytes
    if CHOICES[kept] == "huffman":
        assert 19 <= ratio <= 32
    assert (ratio > 32) == (kept < 0.1)


def test_fedzip_leaves_biases_unpruned_and_small_arrays_alone():
    rng = np.random.default_rng(0)
    x = {"bias": rng.standard_normal(100), "small": rng.standard_normal((7, 9))}
    codec = build_chain([{"name": "fedzip", "kept": 0.01}])
    y = codec.decode(codec.encode(x, {}), x)
    np.testing.assert_array_equal(y["small"], x["small"])
    assert np.unique(y["bias"]).size == 3
    assert (y["bias"] != 0).all()


def test_enough_centroids_lose_nothing():
    x = np.repeat(np.float32([-1, 0, 2]), 50).reshape(10, 15)
    for section in ({"name": "fedzip", "kept": 1.0}, {"name": "kmeans", "clusters": 3}):
        np.testing.assert_array_equal(decoded(section, x)[1], x)


def test_a_payload_is_its_header_and_its_parts():
    payload, _ = decoded({"name": "compeft", "density": 0.2}, TAU)
    assert payload.parts["header"] == HEADER.size
    assert payload.parts["scales"] == 4
    assert payload.parts["values"] == 1
