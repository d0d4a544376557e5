"""Altered payloads, checkpoints and client states: refused in the project's own words.

Whatever the bytes, decoding never runs code, never asks for more memory than the layout allows, and
never takes altered bytes for others than were sent.
"""

import json
import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedsim import checkpoint, registry, trees, wire
from fedsim.arrays import misfit, sha256
from fedsim.chain import build_codecs
from fedsim.client import Update
from fedsim.codec import HEADER, Payload
from fedsim.errors import ClientError, FedsimError, PayloadError
from fedsim.projection import SIZES, Basis
from fedsim.scenario import CodecSection
from fedsim.seedpool import SeedPool, finite_in_float32
from tests.engine.altering import (
    applied,
    changes,
    framed,
    joined_file,
    json_values,
    places,
    replaced,
    split_file,
)

SLACK = 2**21
"""Bytes that a decoder may need beside a multiple of layout and payload."""


def many(examples):
    """Hypothesis, always with the same examples."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


LAYOUTS = {
    "layer": {"w": (8, 6), "b": (6,)},
    "many": {f"x{i}": (3, i) for i in range(5)},
    "vector": {"v": (257,)},
}


def arrays(layout, seed=0):
    rng = np.random.default_rng(seed)
    return {n: rng.normal(size=s).astype(np.float32) for n, s in LAYOUTS[layout].items()}


CHAINS = (
    ("topk", "int8"),
    ("threshold", "kmeans"),
    ("random_projection", "topk", "fp16"),
    ("powersgd", "qsgd"),
    ("random_projection", "terngrad"),
    ({"name": "topk", "error_feedback": "ef14"},),
    ("topk", {"name": "int8", "error_feedback": "ef21"}),
    ({"name": "powersgd", "error_feedback": "econtrol"},),
)


class Sent:
    """Payloads of every codec and of some chains for every layout, made once."""

    def __init__(self):
        written = [*registry.available("codecs"), *(list(chain) for chain in CHAINS)]
        codecs = [build_codecs(CodecSection(up=up)).up for up in written]
        self.codecs = {codec.signature: codec for codec in codecs}
        self.payloads = {}
        for name, codec in self.codecs.items():
            for layout in LAYOUTS:
                try:
                    data = bytes(codec.encode(arrays(layout), {}).data)
                except FedsimError:
                    continue  # a codec may refuse a layout
                self.payloads[name, layout] = data
        self.keys = sorted(self.payloads)


@pytest.fixture(scope="module")
def sent():
    return Sent()


@pytest.fixture(autouse=True)
def no_pickle(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("something was unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)


def check_altered(sent, key, made):
    name, layout = key
    data = sent.payloads[key]
    altered = applied(data, made)
    if altered == data:
        return
    with pytest.raises(PayloadError):
        sent.codecs[name].decode(Payload(altered), arrays(layout))


def check_lying(sent, key, made):
    """A payload whose header fits its body, which itself makes no sense or another sense."""
    name, layout = key
    like, codec = arrays(layout), sent.codecs[name]
    body = applied(sent.payloads[key][HEADER.size :], made)
    payload = Payload(framed(codec, like, body))
    tracemalloc.start()
    try:
        result = codec.decode(payload, like)
        assert not misfit(result, like)
    except PayloadError:
        pass
    finally:
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert used < SLACK + 100 * (len(body) + sum(x.nbytes for x in like.values()))


def payload_changes(sent):
    return st.tuples(st.sampled_from(sent.keys), changes(HEADER.size))


def fuzz_payloads(sent, examples):
    @many(examples)
    @given(payload_changes(sent))
    def altered(example):
        check_altered(sent, *example)

    @many(examples)
    @given(payload_changes(sent))
    def lying(example):
        check_lying(sent, *example)

    altered()
    lying()


def test_altered_payloads_are_refused(sent):
    fuzz_payloads(sent, 200)


@pytest.mark.slow
def test_thousands_of_altered_payloads_are_refused(sent):
    fuzz_payloads(sent, 3_000)


def test_a_payload_of_another_codec_or_layout_is_refused(sent):
    for (name, layout), data in sent.payloads.items():
        for other, codec in sent.codecs.items():
            for like in LAYOUTS:
                if (other, like) != (name, layout):
                    with pytest.raises(PayloadError):
                        codec.decode(Payload(data), arrays(like))


SEEDED = SeedPool(master=5, size=64, eta=0.1, kind="gaussian", start=0).message(np.zeros(64))
PROJECTED = {**Basis(0, 64).message(), SIZES: np.uint32([12, 3])}
PACKED = {
    "pairs": ("kseed", SEEDED, {"seeds": np.uint8([3, 63]), "scalars": np.float32([0.5, -2])}),
    "sums": ("kseed", SEEDED, {"accumulators": np.linspace(-1, 1, 64, dtype=np.float32)}),
    "derived": (
        "ferret",
        PROJECTED,
        {
            "counts": np.uint8([2, 1]),
            "coordinates": np.float32([1, 2, 3]),
            "origin": np.uint64([9]),
        },
    ),
    "sent": (
        "ferret",
        PROJECTED,
        {
            "counts": np.uint8([1, 2]),
            "coordinates": np.float16([1, 2, 3]),
            "indices": np.uint8([5, 0, 63]),
        },
    ),
}


def read_packed(name, data):
    """What the server makes of a packed answer; anything but a refusal must be sound."""
    method, received, _ = PACKED[name]
    plugin = registry.build("clients", {"name": method})
    tracemalloc.start()
    try:
        update = plugin.checked(Update(wire.unpack(Payload(data)), 1), received)
        sums = plugin.summand(update.arrays, received)
    except (PayloadError, ClientError):
        return None
    finally:
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert used < SLACK + 100 * len(data)
    (value,) = (x for n, x in sums.items() if n != "draws")
    assert value.size in (64, 128)
    assert finite_in_float32(value)
    return value


def fuzz_packed(examples):
    data = {name: wire.pack(vectors).data for name, (_, _, vectors) in PACKED.items()}
    header = wire.VECTORS.header.size

    @many(examples)
    @given(st.sampled_from(sorted(data)), changes(header))
    def altered(name, made):
        changed = applied(data[name], made)
        assert changed == data[name] or read_packed(name, changed) is None

    @many(examples)
    @given(st.sampled_from(sorted(data)), changes(20))
    def lying(name, made):
        body = applied(data[name][header:], made)
        read_packed(name, bytes(wire.VECTORS.close([body])))

    @many(examples)
    @given(st.sampled_from(sorted(data)), st.data())
    def foreign(name, drawn):
        """Vectors of the right names with any dtypes and values."""
        vectors = {n: drawn.draw(any_vector(x)) for n, x in PACKED[name][2].items()}
        read_packed(name, wire.pack(vectors).data)

    for name in data:
        assert read_packed(name, data[name]) is not None
    altered()
    lying()
    foreign()


def any_vector(like):
    """A vector, often as long as another one, with values of every kind."""
    lengths = st.one_of(st.just(like.size), st.integers(0, 3))
    return st.sampled_from(wire.DTYPES).flatmap(lambda d: hnp.arrays(d, lengths))


def test_altered_packed_answers_are_refused():
    fuzz_packed(200)


@pytest.mark.slow
def test_thousands_of_altered_packed_answers_are_refused():
    fuzz_packed(1_000)


SAVED = {
    "format": checkpoint.FORMAT,
    "round": 7,
    "weights": {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(0, np.int64)},
    "strategy": {"m": {"w": np.float64([0.5, -1])}, "eta": 0.1, "names": ["a", None], "k": (1, 2)},
    "ledger": {"up": 10, "down": 2**40},
    "clients": {"clients": np.int64([1, 5]), "versions": np.int64([7, 3])},
}
STATE = {"seen": np.float32([3]), "residual": np.ones((4, 5), np.float16)}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    trees.save(folder / "checkpoint", SAVED)
    trees.save(folder / "state", STATE)
    return {p.name: p.read_bytes() for p in folder.iterdir()}, folder / "altered"


def loaded(path, data):
    """The value of a file with these bytes as comparable text, None when it is refused."""
    path.write_bytes(data)
    value = refused_or(trees.load, path)
    tensors = {}
    return value if value is None else (json.dumps(trees.pack(value, tensors)), sha256(tensors))


def refused_or(read, path):
    """What ``read`` makes of a file, None when it refuses and says which file."""
    refusal = ""
    value = None
    try:
        value = read(path)
    except PayloadError as error:
        refusal = str(error)
    assert value is not None or str(path) in refusal
    return value


def fuzz_files(files, examples):
    contents, path = files
    originals = {name: loaded(path, data) for name, data in contents.items()}

    @many(examples)
    @given(st.sampled_from(sorted(contents)), changes(200))
    def altered(name, made):
        assert loaded(path, applied(contents[name], made)) in (None, originals[name])

    @many(examples)
    @given(st.data())
    def lying(data):
        """The digest fits, but a node of the tree is something else."""
        header, values = split_file(contents["checkpoint"])
        tree = json.loads(header["__metadata__"]["tree"])
        place = data.draw(st.sampled_from(places(tree)))
        text = json.dumps(replaced(tree, place, data.draw(json_values())))
        _, tensors = trees_of(contents["checkpoint"], path)
        digest = trees._digest(text, tensors)
        header["__metadata__"] = {"tree": text, "digest": digest}
        path.write_bytes(joined_file(header, values))
        saved = refused_or(checkpoint._read, path)
        assert saved is None or isinstance(saved.server_round, int)

    altered()
    lying()


def trees_of(data, path):
    path.write_bytes(data)
    tensors = {}
    tree = trees.pack(trees.load(path), tensors)
    return tree, tensors


def test_altered_files_are_refused(files):
    fuzz_files(files, 50)


@pytest.mark.slow
def test_thousands_of_altered_files_are_refused(files):
    fuzz_files(files, 1_500)


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "F8_E5M2", "I32", "U8", "C64", "BOOL", "x"])
def test_another_dtype_in_the_header_is_noticed(files, dtype):
    contents, path = files
    header, values = split_file(contents["checkpoint"])
    for name in set(header) - {"__metadata__"}:
        if header[name]["dtype"] != dtype:
            other = {**header, name: {**header[name], "dtype": dtype}}
            assert loaded(path, joined_file(other, values)) is None


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**40, 2**63, 2**64 - 1])
def test_a_length_bomb_takes_no_memory(files, length):
    contents, path = files
    data = length.to_bytes(8, "little") + contents["checkpoint"][8:]
    tracemalloc.start()
    try:
        assert loaded(path, data) is None
        assert tracemalloc.get_traced_memory()[1] < SLACK
    finally:
        tracemalloc.stop()


def test_a_pickle_is_no_checkpoint(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (print, ("boom",))

    for data in (pickle.dumps(SAVED), pickle.dumps(Bomb())):
        assert loaded(tmp_path / "x", data) is None
