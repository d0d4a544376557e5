"""Errors, seeds, arrays, codec frames, registry: the pieces everything else stands on."""

import pickle
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pytest
from pydantic import Field

from fedsim import arrays, registry
from fedsim.codec import HEADER, Payload
from fedsim.codecs.none import NoCodec
from fedsim.errors import DataError, FedsimError, PayloadError, PluginError
from fedsim.seeds import Seeds

LAYOUTS = {
    "one": {"w": np.float32([1.5])},
    "zero": {"w": np.zeros((3, 2), np.float32)},
    "scalar": {"w": np.array(2.5, np.float32)},
    "empty": {"w": np.zeros((0, 4), np.float32), "b": np.ones(2, np.float32)},
    "mixed": {"a": np.arange(6, dtype=np.float64).reshape(2, 3), "h": np.ones(3, np.float16)},
    "strided": {"w": np.arange(12, dtype=np.float32).reshape(3, 4)[:, ::2]},
    "special": {"w": np.array([np.nan, np.inf, -0.0, 1e-45], np.float32)},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_codec_none_keeps_every_bit(name):
    x = LAYOUTS[name]
    payload = NoCodec().encode(x, {})
    back = NoCodec().decode(payload, like=x)
    assert payload.num_bytes == HEADER.size + sum(a.nbytes for a in x.values())
    assert sum(payload.parts.values()) == payload.num_bytes
    for key, value in x.items():
        assert back[key].dtype == value.dtype
        assert back[key].shape == value.shape
        assert back[key].tobytes() == np.ascontiguousarray(value).tobytes()


@pytest.mark.parametrize("spoil", ["cut", "header", "flip", "magic", "codec", "grow", "layout"])
def test_a_spoiled_payload_is_refused(spoil):
    x = {"w": np.arange(8, dtype=np.float32)}
    data = bytearray(NoCodec().encode(x, {}).data)
    like = x
    match spoil:
        case "cut":
            data = data[:-3]
        case "header":
            data = data[:5]
        case "flip":
            data[-1] ^= 1
        case "magic":
            data[0] ^= 1
        case "codec":
            data[3] = 99
        case "grow":
            data += b"x"
        case "layout":
            like = {"v": x["w"]}
    with pytest.raises(PayloadError):
        NoCodec().decode(Payload(bytes(data)), like)


def test_errors_survive_pickling_and_read_as_one_paragraph():
    error = DataError("no such column 'lable'", key=("data", "x"), allowed="Columns: label")
    error.hint = "Did you mean 'label'?"
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is DataError
    assert str(copy) == "data.x: no such column 'lable'. Did you mean 'label'? Columns: label."
    assert str(copy.at("s.yaml:3")).startswith("s.yaml:3: ")
    assert FedsimError("x").exit_code == 3
    assert copy.exit_code == 2


def test_streams_are_named_and_independent():
    seeds = Seeds(7)
    assert seeds.integer("train", 1, 2) != seeds.integer("train", 12)
    assert seeds.integer("a", 1) != seeds.integer("a", "1")
    assert seeds.integer("x") == Seeds(7).integer("x")
    assert seeds.integer("x") != Seeds(8).integer("x")
    assert 0 <= seeds.integer("x") < 2**63


def test_seed_values_are_frozen():
    assert Seeds(0).integer("cohort", 1) == 7445070344247814474


def test_weighted_mean_keeps_dtype_and_order_of_names():
    mean = arrays.WeightedMean()
    mean.update({"b": np.float32([1]), "a": np.float32([10])}, 1)
    mean.update({"b": np.float32([4]), "a": np.float32([40])}, 2)
    result = mean.result()
    assert list(result) == ["b", "a"]
    assert result["b"].dtype == np.float32
    assert result["b"].tolist() == [3.0]
    assert result["a"].tolist() == [30.0]


def test_weighted_mean_refuses_other_names():
    mean = arrays.WeightedMean()
    mean.update({"a": np.ones(1)}, 1)
    with pytest.raises(PayloadError):
        mean.update({"b": np.ones(1)}, 1)


def test_digest_depends_on_values_names_and_shapes_only():
    x = {"a": np.arange(4.0), "b": np.ones(2)}
    assert arrays.sha256(x) == arrays.sha256(dict(reversed(x.items())))
    assert arrays.sha256(x) != arrays.sha256({**x, "a": np.arange(4.0).reshape(2, 2)})
    assert arrays.non_finite({"a": np.ones(2), "b": np.array([1, np.nan])}) == "b"


@dataclass(kw_only=True)
class Toy:
    rate: Annotated[float, Field(gt=0)] = 0.1
    count: int = 1


def test_options_are_checked_and_converted():
    assert registry.check_options(Toy, {"rate": 1}, "toy") == {"rate": 1.0}
    with pytest.raises(PluginError, match=r"unknown option 'rat' of toy. Did you mean 'rate'\?"):
        registry.check_options(Toy, {"rat": 1}, "toy")
    with pytest.raises(PluginError, match="greater than 0"):
        registry.check_options(Toy, {"rate": -1}, "toy")
    with pytest.raises(PluginError, match="valid integer"):
        registry.check_options(Toy, {"count": "many"}, "toy")


@pytest.mark.parametrize("kind", registry.KINDS)
def test_every_plugin_file_holds_one_documented_plugin(kind):
    assert registry.available(kind)
    for entry in registry.available(kind).values():
        target = registry.find(kind, entry.name)
        assert entry.summary, entry.name
        documented = "".join(c.__doc__ or "" for c in target.__mro__)
        for option in registry.options(target).values():
            assert f"{option.name}:" in documented, (entry.name, option.name)
            assert option.annotation is not Any, (entry.name, option.name)


def test_unknown_plugins_name_the_nearest():
    with pytest.raises(PluginError, match="Did you mean 'fedavgm'"):
        registry.find("strategies", "fedavgmm")
    with pytest.raises(PluginError, match="cannot import"):
        registry.find("strategies", "no_such_module:X")
    with pytest.raises(PluginError, match="Did you mean 'FedMedian'"):
        registry.find("strategies", "flwr.serverapp.strategy:FedMedan")
