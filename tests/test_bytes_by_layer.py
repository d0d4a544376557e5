"""Bytes by array: exact where an array is written by itself, shared by entries elsewhere."""

import numpy as np
import pytest

from fedsim import registry, simulation
from fedsim.chain import build_chain
from fedsim.payload import Payload
from fedsim.records import bytes_by_layer
from tests.problems import tiny

RNG = np.random.default_rng(0)
ARRAYS = {
    "large": RNG.normal(size=(40, 50)).astype(np.float32),
    "small": RNG.normal(size=30).astype(np.float32) * 3,
    "empty": np.zeros((0, 3), np.float32),
}
CHAINS = {name: [{"name": name}] for name in registry.available("codecs")}
CHAINS["topk, int8"] = [{"name": "topk", "density": 0.1}, {"name": "int8"}]
CHAINS["powersgd, int8"] = [{"name": "powersgd"}, {"name": "int8"}]
CHAINS["ef21"] = [{"name": "topk", "density": 0.1, "error_feedback": "ef21"}]


def encoded(sections) -> Payload:
    return build_chain(sections).encode(ARRAYS, {})


@pytest.mark.parametrize("chain", CHAINS)
def test_arrays_and_what_is_about_none_add_up(chain):
    payload = encoded(CHAINS[chain])
    spans = payload.by_array()
    for part in payload.parts:
        about_arrays = sum(n for (_, p), n in spans.items() if p == part)
        assert about_arrays <= payload.parts[part]
        if part in ("values", "indices"):
            assert about_arrays == payload.parts[part]
    assert {"large"} <= {name for name, _ in spans} <= {*ARRAYS}


def test_each_array_has_its_own_bytes():
    spans = encoded([{"name": "int8", "block": 100}]).by_array()
    assert (spans["large", "values"], spans["small", "values"]) == (2000, 30)
    assert (spans["large", "scales"], spans["small", "scales"]) == (4 * 20, 4)
    spans = encoded([{"name": "none"}]).by_array()
    assert spans == {("large", "values"): 8000, ("small", "values"): 120}


def test_a_common_choice_is_charged_by_how_many_entries_each_array_has_in_it():
    payload = encoded([{"name": "topk", "density": 0.1}])
    vector = np.concatenate([ARRAYS["large"].ravel(), ARRAYS["small"]])
    kept = np.argsort(-np.abs(vector))[:203]
    large = int((kept < 2000).sum())
    spans = payload.by_array()
    assert spans["large", "values"] == 4 * large
    assert spans["small", "values"] == 4 * (203 - large)
    assert spans["large", "indices"] == payload.parts["indices"] * large // 203


def test_a_run_has_them_in_its_rounds_and_totals_when_asked(tmp_path):
    def totals(**codec):
        scenario = tiny(codec=codec, num_rounds=2, clients_per_round=3)
        return simulation.run(scenario, out=tmp_path).summary["totals"]

    plain, asked = totals(up="int8"), totals(up="int8", by_layer=True)
    assert bytes_by_layer(plain, "up") == {}
    up, down = bytes_by_layer(asked, "up"), bytes_by_layer(asked, "down")
    assert down == {"weight": {"values": 288}, "bias": {"values": 72}}  # 2 rounds, 3 clients
    assert (up["weight"]["values"], up["bias"]["values"]) == (72, 18)
    assert {k: asked[k] for k in plain if k.startswith("comm")} == {
        k: v for k, v in plain.items() if k.startswith("comm")
    }
