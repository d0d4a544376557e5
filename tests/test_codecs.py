"""Contracts of all codecs: contraction, unbiasedness, round trips, edges, spoiling, sizes."""

import math

import numpy as np
import pytest

from fedsim import registry
from fedsim.arrays import Arrays
from fedsim.chain import Chain, build_chain
from fedsim.codec import HEADER, Codec, Payload, Sender, Writer, frame
from fedsim.codecs._symbols import entropy_bits
from fedsim.codecs._vectors import flatten
from fedsim.errors import PayloadError
from fedsim.seeds import Seeds

NAMES = list(registry.available("codecs"))
VARIANTS: dict[str, list[dict]] = {name: [{"name": name}] for name in NAMES} | {
    "topk": [{"name": "topk", "density": 0.1, "per_layer": p} for p in (False, True)],
    "randk": [{"name": "randk", "density": 0.2, "scaled": s} for s in (False, True)],
    "threshold": [{"name": "threshold", "scale": s, "threshold": 0.9} for s in ("rms", "max")]
    + [{"name": "threshold", "scale": "absolute", "threshold": 0.5}],
    "qsgd": [
        {"name": "qsgd", "bits": b, "norm": n, "bucket": k, "rescaled": r}
        for b, n, k, r in (
            (4, "l2", 64, False),
            (2, "max", 0, False),
            (8, "l2", 0, True),
            (3, "max", 64, True),
        )
    ],
    "int8": [{"name": "int8", "block": 32, "stochastic": s} for s in (False, True)],
    "int4": [{"name": "int4", "block": 32, "stochastic": s} for s in (False, True)],
    "natural": [{"name": "natural", "rescaled": r} for r in (False, True)],
    "powersgd": [{"name": "powersgd", "rank": 2, "warm_start": w} for w in (False, True)],
    "kmeans": [{"name": "kmeans", "clusters": c} for c in (2, 5)],
    "compeft": [{"name": "compeft", "density": 0.2, "scale": s} for s in ("sigma", "mean")],
    "fedzip": [{"name": "fedzip", "kept": k} for k in (0.05, 0.3, 1.0)],
    "random_projection": [{"name": "random_projection", "scaled": s} for s in (False, True)],
}
CHAINS = [
    [{"name": "topk", "density": 0.1}, {"name": "qsgd", "bits": 4}],
    [{"name": "topk", "density": 0.1, "per_layer": True}, {"name": "sign"}],
    [{"name": "randk", "density": 0.3}, {"name": "natural"}],
    [{"name": "powersgd", "rank": 2}, {"name": "int8"}],
    [{"name": "powersgd", "rank": 2}, {"name": "topk", "density": 0.5}, {"name": "fp16"}],
    [{"name": "random_projection"}, {"name": "terngrad"}],
    [{"name": "threshold"}, {"name": "kmeans", "clusters": 3}],
]
ALL = [[v] for name in NAMES for v in VARIANTS[name]] + CHAINS


def label(sections) -> str:
    return "+".join("-".join(str(v) for v in s.values()) for s in sections)


every = pytest.mark.parametrize("sections", ALL, ids=label)


def normal(seed: int = 0, dtype=np.float32) -> Arrays:
    rng = np.random.default_rng(seed)
    shapes = {"a": (24, 16), "bias": (16,), "b": (8, 4, 5)}
    return {n: rng.standard_normal(s).astype(dtype) for n, s in shapes.items()}


def sender(n: int = 0) -> Sender:
    return Sender(Seeds(5), round=n, client=3)


def both(codec: Codec, x: Arrays, n: int = 0) -> Arrays:
    payload = codec.encode(x, {}, sender(n))
    assert sum(payload.parts.values()) == payload.num_bytes == len(payload.data)
    return codec.decode(Payload(payload.data), {k: np.zeros_like(v) for k, v in x.items()})


def square(*terms: Arrays) -> float:
    first, second = terms if len(terms) == 2 else (terms[0], None)
    total = 0.0
    for k, v in first.items():
        d = v.astype(np.float64) - (0 if second is None else second[k])
        total += float((d * d).sum())
    return total


EDGES = {
    "zero": {"w": np.zeros((20, 10), np.float32)},
    "constant": {"w": np.full((20, 10), -0.25, np.float32)},
    "one element": {"w": np.float32([[3.0]])},
    "0-d": {"w": np.array(-1.5, np.float32)},
    "empty": {"w": np.zeros((0, 3), np.float32), "v": np.ones((9, 9), np.float32)},
    "nothing": {},
    "all empty": {"w": np.zeros((0, 3), np.float32)},
    "float64": normal(1, np.float64),
    "float16": normal(1, np.float16),
    "mixed": {"h": np.ones((9, 9), np.float16), "d": np.arange(90.0).reshape(9, 10)},
    "strided": {"w": np.arange(400, dtype=np.float32).reshape(20, 20)[:, ::2]},
    "transposed": {"w": np.arange(200, dtype=np.float32).reshape(20, 10).T},
    "tiny": {"w": np.full((9, 9), 1e-45, np.float32)},
    "one spike": {"w": np.eye(1, 100, 7, dtype=np.float32).reshape(10, 10)},
    "one sided": {"w": np.abs(normal(2)["a"])},
}


@every
@pytest.mark.parametrize("edge", EDGES)
def test_edges_keep_names_shapes_and_dtypes(sections, edge):
    x = EDGES[edge]
    codec = build_chain(sections)
    before = {k: v.copy() for k, v in x.items()}
    y = both(codec, x)
    assert list(y) == list(x)
    for k, v in x.items():
        assert y[k].shape == v.shape
        assert y[k].dtype == v.dtype
        assert np.isfinite(y[k]).all()
        np.testing.assert_array_equal(v, before[k])
        if not np.any(v):
            assert not np.any(y[k])


@every
def test_contraction(sections):
    codec = build_chain(sections)
    if not codec.contraction:
        return
    for seed in range(3):
        x = normal(seed)
        alpha = codec.alpha(x)
        assert 0 <= alpha <= 1
        errors = [square(both(codec, x, n), x) for n in range(30)]
        # the mean of 30 draws, five standard deviations of it
        slack = 5 * np.std(errors) / math.sqrt(30) + 1e-6 * square(x)
        assert np.mean(errors) <= (1 - alpha) * square(x) + slack


@every
def test_unbiasedness(sections):
    """Along 20 directions, the mean of 400 draws lies within five of its standard deviations."""
    codec = build_chain(sections)
    if not codec.unbiased:
        return
    x = normal(4)
    draws = np.stack([flatten(both(codec, x, n)) for n in range(400)]).astype(np.float64)
    truth = flatten(x).astype(np.float64)
    rng = np.random.default_rng(0)
    for direction in [truth, np.ones(truth.size), *rng.standard_normal((18, truth.size))]:
        seen = draws @ direction
        slack = 1e-5 * np.linalg.norm(truth) * np.linalg.norm(direction)
        tolerance = 5 * seen.std() / math.sqrt(len(seen)) + slack
        assert abs(seen.mean() - truth @ direction) <= tolerance


@every
def test_linear_codecs_may_be_added(sections):
    codec = build_chain(sections)
    if not codec.linear:
        return
    x, y = normal(1), normal(2)
    total = both(codec, {k: x[k] + y[k] for k in x})
    one, two = both(codec, x), both(codec, y)
    for k in x:
        np.testing.assert_allclose(total[k], one[k] + two[k], atol=1e-5)


@every
def test_encoding_repeats_and_depends_on_the_sender_where_it_is_random(sections):
    x = normal(0)
    codec = build_chain(sections)
    again = codec.encode(x, {}, sender(1)).data
    assert codec.encode(x, {}, sender(1)).data == again
    assert build_chain(sections).encode(x, {}, sender(1)).data == again


@every
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(sections, bad):
    codec = build_chain(sections)
    if codec.lossless:
        return
    x = normal(0)
    x["a"][3, 4] = bad
    with pytest.raises(PayloadError, match="array a holds NaN or infinity"):
        codec.encode(x, {}, sender())
    with pytest.raises(PayloadError, match="floating"):
        codec.encode({"n": np.arange(4)}, {}, sender())


@every
def test_every_cut_and_every_flipped_byte_is_refused(sections):
    x = {"w": normal(0)["a"][:8, :8]}
    codec = build_chain(sections)
    data = codec.encode(x, {}, sender()).data
    for length in range(len(data)):
        with pytest.raises(PayloadError):
            codec.decode(Payload(data[:length]), x)
    for place in range(len(data)):
        for bit in (0, 6):
            spoiled = bytearray(data)
            spoiled[place] ^= 1 << bit
            with pytest.raises(PayloadError):
                codec.decode(Payload(bytes(spoiled)), x)


@every
def test_nonsense_behind_a_right_checksum_decodes_or_is_refused(sections):
    codec = build_chain(sections)
    rng = np.random.default_rng(0)
    x = {"w": normal(0)["a"][:8, :8]}
    body = codec.encode(x, {}, sender()).data[HEADER.size :]
    for _ in range(150):
        spoiled = bytearray(body)
        for place in rng.integers(0, max(1, len(body)), 3):
            spoiled[place] = rng.integers(256)
        cut = int(rng.integers(0, len(body) + 1)) if rng.random() < 0.3 else len(body)
        payload = frame(codec.signature, x, [bytes(spoiled[:cut])])
        try:
            y = codec.decode(payload, x)
        except PayloadError:
            continue
        assert y["w"].shape == x["w"].shape


@pytest.mark.parametrize("name", NAMES)
def test_payloads_of_another_codec_version_or_layout_are_refused(name):
    x = normal(0)
    codec = build_chain([{"name": name}])
    payload = codec.encode(x, {}, sender())
    other = build_chain([{"name": "sign" if name != "sign" else "topk"}])
    with pytest.raises(PayloadError, match="another codec"):
        other.decode(payload, x)
    with pytest.raises(PayloadError, match="another codec"):
        Chain([codec, other]).decode(payload, x)
    newer = type(f"{type(codec).__name__}", (type(codec),), {"version": 99})
    newer.__module__ = type(codec).__module__
    with pytest.raises(PayloadError, match="another version"):
        newer().decode(payload, x)
    for like in (
        {**x, "c": x["b"]},
        {"b": x["b"], "a": x["a"], "bias": x["bias"]},
        normal(0, "f8"),
    ):
        with pytest.raises(PayloadError, match="other names, dtypes or shapes"):
            codec.decode(payload, like)


@pytest.mark.parametrize("name", ["topk", "randk", "threshold"])
def test_sparsifiers_keep_values_bit_by_bit(name):
    x = {**normal(0), "d": normal(1, np.float64)["a"]}
    for sections in ([VARIANTS[name][0]], [{**VARIANTS[name][0], "per_layer": True}]):
        if name == "randk" and "per_layer" in sections[0]:
            continue
        y = both(build_chain(sections), x)
        for k in x:
            kept = y[k] != 0
            np.testing.assert_array_equal(y[k][kept], x[k][kept])
        assert 0 < sum(int((v != 0).sum()) for v in y.values()) < sum(v.size for v in x.values())


def test_topk_keeps_the_largest_and_of_equal_ones_the_first():
    x = {"w": np.float32([1, -3, 2, 3, -2, 0])}
    codec = build_chain([{"name": "topk", "density": 0.5}])
    assert both(codec, x)["w"].tolist() == [0, -3, 2, 3, 0, 0]
    rng = np.random.default_rng(0)
    for dtype in (np.float16, np.float32, np.float64):
        v = rng.integers(-9, 10, 1000).astype(dtype)
        y = both(build_chain([{"name": "topk", "density": 0.123}]), {"w": v})["w"]
        order = np.argsort(-np.abs(v), kind="stable")[:123]
        expected = np.zeros_like(v)
        expected[order] = v[order]
        np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("name", ["topk", "randk"])
def test_density_one_is_none(name):
    x = normal(0)
    y = both(build_chain([{"name": name, "density": 1.0}]), x)
    for k in x:
        assert y[k].tobytes() == x[k].tobytes()


def test_scaled_sign_has_the_error_of_its_closed_form():
    x = normal(0)["a"]
    y = both(build_chain([{"name": "sign"}]), {"w": x})["w"]
    assert np.unique(np.abs(y)).size == 1
    expected = float((x**2).sum() - np.abs(x).sum() ** 2 / x.size)
    assert float(((x - y) ** 2).sum()) == pytest.approx(expected, rel=1e-5)


def test_natural_gives_powers_of_two_next_to_the_value():
    x = np.float32([3.0, -0.1, 4.0, 1e-30, 0.0])
    seen = np.stack(
        [both(build_chain([{"name": "natural"}]), {"w": x}, n)["w"] for n in range(200)]
    )
    assert set(seen[:, 0].tolist()) == {2.0, 4.0}
    assert set(seen[:, 1].tolist()) == {-0.0625, -0.125}
    assert set(seen[:, 2].tolist()) == {4.0}
    assert set(seen[:, 4].tolist()) == {0.0}


def test_bf16_and_fp16_round_as_torch_does():
    import torch

    x = np.concatenate([normal(0)["a"].ravel(), np.float32([1e-8, 65504, -0.0, 1 + 2**-8])])
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        y = both(build_chain([{"name": name}]), {"w": x})["w"]
        np.testing.assert_array_equal(y, torch.from_numpy(x).to(dtype).float().numpy())
    with pytest.raises(PayloadError, match="65504"):
        build_chain([{"name": "fp16"}]).encode({"w": np.float32([1e6])}, {})
    assert np.isfinite(
        both(build_chain([{"name": "bf16"}]), {"w": np.float32([3.4e38])})["w"]
    ).all()


def test_powersgd_is_exact_on_low_rank_and_its_warm_start_converges():
    rng = np.random.default_rng(0)
    low = (rng.normal(size=(40, 2)) @ rng.normal(size=(2, 30))).astype(np.float32)
    codec = build_chain([{"name": "powersgd", "rank": 2}])
    np.testing.assert_allclose(both(codec, {"w": low})["w"], low, atol=1e-4)
    matrix = rng.normal(size=(40, 30)).astype(np.float32)
    state: Arrays = {}
    errors = []
    for n in range(60):
        payload = codec.encode({"w": matrix}, state, sender(n))
        errors.append(np.linalg.norm(codec.decode(payload, {"w": matrix})["w"] - matrix))
    best = math.sqrt(float((np.linalg.svd(matrix)[1][2:] ** 2).sum()))
    assert errors[0] > 1.02 * best
    assert errors[-1] == pytest.approx(best, rel=1e-3)
    assert payload.num_bytes == HEADER.size + 1 + 4 * 2 * (40 + 30)


def test_a_changed_rank_keeps_the_columns_that_fit():
    matrix = {"w": normal(0)["a"]}
    codec = build_chain([{"name": "powersgd", "rank": 2}])
    state: Arrays = {}
    for rank in (2, 5, 1):
        planned = Sender(Seeds(5), round=rank, client=3, plan={"w": rank})
        codec.decode(codec.encode(matrix, state, planned), matrix)
        assert state["powersgd/w"].shape == (16, rank)


SIZES = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "heavy": lambda rng, n: rng.standard_t(2, n),
}


@pytest.mark.parametrize("data", SIZES)
@pytest.mark.parametrize("density", [0.001, 0.01, 0.05, 0.2, 0.4, 0.7])
def test_positions_take_their_entropy(data, density):
    n = 500_000
    x = SIZES[data](np.random.default_rng(0), n).astype(np.float32)
    codec = build_chain([{"name": "topk", "density": density}])
    parts = codec.encode({"w": x}, {}).parts
    k = round(density * n)
    assert parts["values"] == 4 * k
    bound = entropy_bits(np.array([k, n - k])) / 8
    assert bound * 0.97 < parts["indices"] + parts["header"] - HEADER.size <= 1.03 * bound


@pytest.mark.parametrize("data", SIZES)
@pytest.mark.parametrize(
    "section",
    [
        {"name": "terngrad"},
        {"name": "natural"},
        {"name": "qsgd", "bits": 3},
        {"name": "qsgd", "bits": 8, "bucket": 0},
        {"name": "kmeans", "clusters": 16},
    ],
    ids=lambda s: s["name"],
)
def test_symbols_take_their_entropy(data, section):
    n = 200_000
    x = SIZES[data](np.random.default_rng(0), n).astype(np.float32)
    codec = build_chain([section])
    payload = codec.encode({"w": x}, {}, sender())
    values = codec.decode(payload, {"w": x})["w"]
    if section.get("bits") == 3:
        padded = np.zeros(-(-n // 512) * 512, np.float32)
        padded[:n] = values
        rows = padded.reshape(-1, 512)
        step = np.abs(np.where(rows == 0, np.inf, rows)).min(axis=1)
        symbols = np.rint(rows / np.where(np.isfinite(step), step, 1)[:, None]).ravel()[:n]
    else:
        symbols = values
    bound = entropy_bits(np.unique(symbols, return_counts=True)[1]) / 8
    counted = payload.num_bytes - payload.parts.get("scales", 0) - HEADER.size
    assert 0.97 * bound < counted <= 1.03 * bound


def test_writer_counts_what_it_writes():
    out = Writer()
    out.number(300, "indices")
    out.put(np.zeros(3, np.float32), "values")
    other = Writer()
    other.put(b"ab", "values")
    out.append(other)
    assert out.parts == {"indices": 2, "values": 14}
    assert len(b"".join(out.chunks)) == 16
