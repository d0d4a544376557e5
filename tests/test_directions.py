"""Directions: frozen values, independence of shapes and threads, exact sums, moments."""

import hashlib
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.special import ndtri

from fedsim import directions, directions_torch
from fedsim.directions import BLOCK, Directions

KINDS = ("gaussian", "rademacher", "sphere", "truncated")
SIZE = 2 * BLOCK + 4321


def digest(x: np.ndarray) -> str:
    return hashlib.sha256(x.astype("<f4").tobytes()).hexdigest()


def test_philox_words_and_the_table_are_frozen():
    raw = np.random.Generator(np.random.Philox(key=42)).bit_generator.random_raw(4)
    assert raw.tolist() == [
        15129985323320379406,
        3490965594592278910,
        16005516994917231875,
        7278743398533373529,
    ]
    expected = "8babbcaf96568f10165a1eab530c0e5c92d04de96761b6dbb3dadfa94baba37f"
    assert digest(directions._gaussian()) == expected


FROZEN = {
    "gaussian": ([0.07896953, -0.5178473], 0.99222910, "68be101b2754cf67"),
    "rademacher": ([-1.0, 1.0], -1.0, "afb1f75c6766ff10"),
    "sphere": ([0.07918769, -0.5192779], 0.99497020, "52052489ad186691"),
    "truncated": ([0.001241005, -0.0018783241], -0.0028585272, "06c6f9408a4b2a6e"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_frozen(kind):
    first, last, expected = FROZEN[kind]
    values = Directions(100_000, kind).values(42)
    assert values[:2].tolist() == pytest.approx(first, rel=1e-6)
    assert values[-1] == pytest.approx(last, rel=1e-6)
    assert digest(values).startswith(expected)
    assert directions.VERSION == 1  # other values need another version


def test_the_table_is_far_from_any_rounding_border():
    """Any inverse normal that is right to 1e-12 rounds to the same float32 values."""
    quantiles = ndtri(0.5 + (np.arange(32_768) + 0.5) / 65_536)
    exact = quantiles * math.sqrt(32_768 / math.fsum((quantiles**2).tolist()))
    rounded = exact.astype(np.float32)
    np.testing.assert_array_equal(directions._gaussian()[32_768:], rounded)
    border = np.spacing(rounded).astype(float) / 2
    margin = np.abs(np.abs(exact - rounded) - border) / exact
    assert margin.min() > 1e-12


def test_a_value_is_the_table_entry_of_a_philox_word():
    size, seed, stream = 3 * BLOCK, 2**64 - 5, 7
    bits = np.random.Philox(key=np.array([seed, stream * 256], np.uint64))
    words = bits.random_raw(size // 4).astype("<u8").view("<u2")
    expected = directions._gaussian()[words]
    np.testing.assert_array_equal(Directions(size, stream=stream).values(seed), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_threads_shapes_and_pieces_do_not_change_bits(kind):
    one = Directions(SIZE, kind)
    two = Directions(SIZE, kind, threads=2)
    flat = np.zeros(SIZE, np.float32)
    one.accumulate(flat, [1, 2, 3], [0.5, 0.0, -1.25])
    sizes = [5, BLOCK, 0, 1234, *np.random.default_rng(0).integers(1, 600, 60)]
    pieces = {str(i): np.zeros(n, np.float32) for i, n in enumerate(sizes)}
    pieces["rest"] = np.zeros((SIZE - sum(sizes), 1), np.float32)
    two.accumulate(pieces, [1, 2, 3], [0.5, 0.0, -1.25])
    joined = np.concatenate([x.reshape(-1) for x in pieces.values()])
    np.testing.assert_array_equal(flat, joined)
    np.testing.assert_array_equal(one.dot(flat, [4, 5]), two.dot(pieces, [4, 5]))


@pytest.mark.parametrize("size", [1, 257, BLOCK, 2 * BLOCK, 2 * BLOCK + 256, 5 * BLOCK + 4321])
@pytest.mark.parametrize("kind", KINDS)
def test_torch_makes_the_same_bits(monkeypatch, kind, size):
    monkeypatch.setattr(directions_torch, "PIECE", 2 * BLOCK)
    some = np.random.default_rng(size).standard_normal(size, dtype=np.float32)
    cut = size // 3
    arrays = {"a": some[:cut].copy(), "b": some[cut:].copy()}
    tensors = {name: torch.tensor(x) for name, x in arrays.items()}
    of, seeds = Directions(size, kind, stream=3), [5, 2**64 - 1, 7]
    np.testing.assert_array_equal(of.dot(arrays, seeds), of.dot(tensors, seeds))
    for one in (arrays, tensors):
        of.accumulate(one, seeds, [0.1, 1.0, -3e-5])
        of.add(one, 9, -1e-3)
    for name, x in arrays.items():
        np.testing.assert_array_equal(x, tensors[name].numpy())


@pytest.mark.parametrize("kind", KINDS)
def test_fused_operations_equal_explicit_vectors(kind):
    d = Directions(SIZE, kind)
    rng = np.random.default_rng(0)
    x = rng.normal(size=SIZE).astype(np.float32)
    z = np.stack([d.values(seed) for seed in (11, 12, 13)])
    exact = z.astype(float) @ x.astype(float)
    scale = np.linalg.norm(z, axis=1) * np.linalg.norm(x)
    assert np.all(np.abs(d.dot(x, [11, 12, 13]) - exact) < 1e-6 * scale)
    moved = x.copy()
    d.add(moved, 11, 0.3)
    np.testing.assert_array_equal(moved, x + np.float32(0.3) * z[0])
    moved = x.copy()
    d.accumulate(moved, [11, 12, 13], [0.3, -2.0, 1.0])
    terms = [np.float32(c) * row for c, row in zip((0.3, -2.0, 1.0), z, strict=True)]
    np.testing.assert_array_equal(moved, x + (terms[0] + terms[1] + terms[2]))


@pytest.mark.parametrize("scales", [[1e-60], [-1e-60], [1e-60, -1e-60]])
def test_signs_of_zeros_are_those_of_a_sum(scales):
    """A scale that float32 rounds to 0 leaves products of 0 and -0."""
    size = 3 * 256 + 5
    z = [Directions(size).values(seed) * np.float32(scale) for seed, scale in enumerate(scales)]
    x, tensor = np.full(size, np.float32(-0.0)), torch.full((size,), -0.0)
    expected = x + (z[0] + z[1] if len(z) == 2 else z[0])
    Directions(size).accumulate(x, range(len(z)), scales)
    Directions(size).accumulate({"x": tensor}, range(len(z)), scales)
    assert x.tobytes() == expected.tobytes() == tensor.numpy().tobytes()


def test_double_precision_takes_the_same_values():
    size = BLOCK + 77
    x = np.full(size, 0.1)
    expected = x + Directions(size).values(3) * np.float32(0.3)
    Directions(size).add(x, 3, 0.3)
    np.testing.assert_array_equal(x, expected)


@pytest.mark.slow
def test_code_that_cannot_be_kept_is_compiled_again(tmp_path):
    """A read-only installation and home."""
    told = "import fedsim.directions as d; print(d.Directions(4).values(42).tolist())"
    env = {**os.environ, "NUMBA_CACHE_LOCATOR_CLASSES": "ZipCacheLocator"}
    done = subprocess.run([sys.executable, "-c", told], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert eval(done.stdout) == Directions(4).values(42).tolist()


def test_moments():
    z = Directions(1_000_000).values(3).astype(float)
    assert abs(z.mean()) < 4e-3
    assert z.var() == pytest.approx(1, abs=6e-3)
    assert (z**4).mean() == pytest.approx(3, abs=0.06)
    signs = Directions(1_000_000, "rademacher").values(3)
    assert set(np.unique(signs)) == {-1.0, 1.0}
    assert abs(signs.mean()) < 4e-3
    ball = Directions(10_000, "sphere").values(3).astype(float)
    assert np.linalg.norm(ball) == pytest.approx(100, rel=1e-6)


def test_directions_of_other_seeds_streams_and_positions_are_uncorrelated():
    z = [
        Directions(200_000).values(1),
        Directions(200_000).values(2),
        Directions(200_000, stream=1).values(1),
        np.roll(Directions(200_000).values(1), 1),
        np.roll(Directions(200_000).values(1), BLOCK),
    ]
    correlation = np.corrcoef(z) - np.eye(len(z))
    assert np.abs(correlation).max() < 5 / math.sqrt(200_000)


def test_variance_of_truncated_directions():
    """The values of the Ferret specification, and 1 / (3 d) in the limit."""
    expected = {4: 0.080589, 16: 0.020660, 256: 0.00130141}
    for size, rho in expected.items():
        assert directions.truncated_variance(size) == pytest.approx(rho, rel=2e-5)
        table = directions._truncated(size).astype(float)
        assert (table**2).mean() == pytest.approx(rho, rel=2e-5)
        assert np.abs(table).max() <= 1 / math.sqrt(size)
    assert 3e6 * directions.truncated_variance(10**6) == pytest.approx(1, rel=1e-4)


def test_wrong_sizes_and_copies_are_refused():
    with pytest.raises(ValueError, match="3 values are not 4"):
        Directions(4).add(np.zeros(3, np.float32), 0, 1.0)
    with pytest.raises(ValueError, match="contiguous"):
        Directions(4).add(np.zeros((2, 2), np.float32).T, 0, 1.0)
    with pytest.raises(ValueError, match="not to int32"):
        Directions(4).add(np.zeros(4, np.int32), 0, 1.0)
    with pytest.raises(ValueError, match="known kind"):
        Directions(4, "cauchy")  # type: ignore[arg-type]
