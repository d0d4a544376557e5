"""Profiles, fleets and tables of devices."""

import json
import os
import pickle
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from fedsim.devices import profiles, tables, traces
from fedsim.devices.fleet import Fleet
from fedsim.devices.section import DevicesSection
from fedsim.errors import FedsimError, ScenarioError
from fedsim.scenario import load
from fedsim.seeds import Seeds

SCENARIO = """\
num_rounds: 1
num_clients: 6
task: module
model: {name: "tests.problems:logistic"}
data: {path: "tests.problems:blobs"}
"""


def fleet(num_clients: int = 80, **section) -> Fleet:
    if "table" not in section:
        section.setdefault("mix", [{"profile": "jetson-tx2", "share": 1}])
    return Fleet(DevicesSection.model_validate(section), Seeds(0), num_clients)


@pytest.mark.parametrize("name", profiles.names("profiles"))
def test_shipped_profiles_say_where_their_figures_are_from(name):
    profile = profiles.profile(name)
    assert len(profile.source) > 20
    assert profiles.network(profile.network)
    assert len(profile.model_fields_set) >= 10


@pytest.mark.parametrize("name", profiles.names("networks"))
def test_shipped_networks_are_valid(name):
    assert len(profiles.network(name).source) > 20


def test_there_are_enough_of_them():
    assert len(profiles.names("profiles")) >= 16
    assert {p.kind for p in map(profiles.profile, profiles.names("profiles"))} == {
        "phone", "board", "laptop", "edge",
    }  # fmt: skip


def test_tx2_peak():
    assert profiles.profile("jetson-tx2").peak_gflops == pytest.approx(256 * 2 * 1.30)
    assert fleet().device(0).flops_per_s == pytest.approx(345e9, rel=0.01)


def test_shares_are_dealt_out_exactly_and_in_mixed_order():
    mix = [("jetson-tx2", 0.375), ("jetson-nx", 0.5), ("jetson-agx", 0.125)]
    made = fleet(mix=[{"profile": p, "share": s} for p, s in mix])
    names = [made.device(i).profile for i in range(80)]
    assert Counter(names) == {"jetson-tx2": 30, "jetson-nx": 40, "jetson-agx": 10}
    assert sum(a != b for a, b in pairwise(names)) > 10


def test_a_device_is_a_function_of_seed_and_client():
    a, b = fleet(10**6, speed_sigma=0.5), fleet(10**6, speed_sigma=0.5)
    assert a.device(765_432, 3) == b.device(765_432, 3)
    assert a.device(1).flops_per_s != a.device(2).flops_per_s


@pytest.mark.slow
def test_jitter_and_bandwidth_have_the_distributions_they_claim():
    steady = {"downlink_mbps": {"median": 41.34, "sigma": 0.47}, "uplink_mbps": 1, "source": "log"}
    made = fleet(20_000, speed_sigma=0.5, network=steady)
    devices = [made.device(i) for i in range(20_000)]
    speed = np.log([d.flops_per_s / (665.6e9 * 0.52) for d in devices])
    assert speed.mean() == pytest.approx(0, abs=0.02)
    assert speed.std() == pytest.approx(0.5, rel=0.03)
    down = np.array([d.down_mbps for d in devices])
    assert np.median(down) == pytest.approx(41.34, rel=0.03)


def test_the_phone_wifi_log():
    draws = Seeds(0).uniforms("device downlink", np.arange(100_000))
    from scipy.special import ndtri

    kilobytes = np.exp(8.55 + 0.47 * ndtri(draws))
    assert np.median(kilobytes) == pytest.approx(5167, rel=0.01)
    assert pytest.approx(5167, rel=0.001) == 41.34 * 1000 / 8


def test_modes_are_redrawn_every_so_many_rounds():
    made = fleet(mode_rounds=20)
    modes = [made.device(5, n).mode for n in range(1, 401)]
    assert len({tuple(modes[i : i + 20]) for i in range(0, 400, 20)}) > 1
    assert all(len(set(modes[i : i + 20])) == 1 for i in range(0, 400, 20))
    assert set(modes) == set(profiles.profile("jetson-tx2").modes)
    slow = next(n for n in range(1, 401) if modes[n - 1] == "Max-Q")
    assert made.device(5, slow).flops_per_s / fleet().device(5).flops_per_s == pytest.approx(0.65)
    fixed = fleet(mix=[{"profile": "jetson-tx2", "share": 1, "mode": "Max-Q"}], mode_rounds=5)
    assert {fixed.device(0, n).mode for n in range(1, 50)} == {"Max-Q"}


def test_a_table_of_measured_devices(tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text("name,peak_gflops,uplink_mbps\na,10,1\nb,20,2\n")
    made = fleet(6, table=str(file), base="pixel-4")
    found = Counter((d.profile, d.up_mbps) for d in map(made.device, range(6)))
    assert found == {("a", 1.0): 3, ("b", 2.0): 3}
    assert made.device(0).memory_bytes == 2e9


def test_fedscale_capacities(tmp_path):
    pickled, file = tmp_path / "capacity.pkl", tmp_path / "capacity.json"
    content = {1: {"computation": 20.0, "communication": 4000.0}}
    pickled.write_bytes(pickle.dumps(content))
    assert traces.convert(pickled, file) == 1
    assert traces.capacities(str(file)) == ((20.0, 4.0),)
    device = fleet(4, table=str(file)).device(2)
    assert (device.inference_s, device.down_mbps, device.up_mbps) == (0.02, 4.0, 4.0)


def test_a_bad_entry_is_named_with_its_line(tmp_path):
    pickled, file = tmp_path / "trace.pkl", tmp_path / "trace.json"
    good = {"active": [0], "inactive": [5], "finish_time": 20}
    bad = {"active": [0, 4], "inactive": [5, 12], "finish_time": 20}
    pickled.write_bytes(pickle.dumps({1: good, 2: bad}))
    traces.convert(pickled, file)
    with pytest.raises(ScenarioError, match=r"trace\.json:3, device 2: intervals overlap"):
        traces.presence(str(file))
    with pytest.raises(ScenarioError, match=r"trace\.json:2, device 1: is no capacity"):
        traces.capacities(str(file))


class Harmful:
    """Unpickling it makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return (os.mkdir, (self.folder,))


def test_a_pickle_is_neither_read_nor_run(tmp_path):
    file, folder = tmp_path / "trace.pkl", tmp_path / "made"
    file.write_bytes(pickle.dumps({1: Harmful(str(folder))}))
    with pytest.raises(ScenarioError, match="convert-trace"):
        traces.presence(str(file))
    with pytest.raises(ScenarioError, match=r"it holds a posix\.mkdir"):
        traces.convert(file, tmp_path / "trace.json")
    assert not folder.exists()


TX2 = "{profile: jetson-tx2, share: 1}"
BAD = {
    "mix: [{profile: jetson-tx2, share: 0.5}, {profile: pixel-4, share: 0.3}]":
        ":7: the shares of the mix sum to 0.8, not to 1. With 0.5 as the last share they would",
    "mix: [{profile: jetson-tx, share: 1}]": ":7: there is no profile 'jetson-tx'. Did you mean",
    "mix: [{profile: jetson-tx2, share: 1, network: wify}]": "Did you mean 'wifi'?",
    "mix: [{profile: jetson-tx2, share: 1, mode: Max-R}]": "Did you mean 'Max-Q'?",
    "mix: [{profile: jetson-tx2, share: -1}]": "must be greater than or equal to 0, not -1",
    "deadline_s: 10": ":6: give exactly one of 'mix' and 'table'",
    f"mix: [{TX2}]\n  table: x.csv": "give exactly one of 'mix' and 'table'",
    f"mix: [{TX2}]\n  deadline_s: -3": ":8: 'devices.deadline_s' must be greater than 0, not -3",
    f"mix: [{TX2}]\n  deadline: 3": "unknown key 'deadline' in 'devices'. Did you mean 'deadline_s",
    f"mix: [{TX2}]\n  availability: sometimes": "'devices.availability' ",
    f"mix: [{TX2}]\n  availability: {{name: markov, rate: 2}}": "must be less than or equal to 1",
    f"mix: [{TX2}]\n  availability: {{name: trace, file: gone.json}}": "cannot be read",
    f"mix: [{TX2}]\n  network: {{downlink_mbps: {{low: 1}}, uplink_mbps: 1, source: me}}":
        "both 'low' and 'high'",
    "table: gone.csv": "cannot be read",
    "mix: [{profile: mine.yaml, share: 1}]": "mine.yaml:2: unknown key 'peak'",
}  # fmt: skip


@pytest.mark.parametrize(("devices", "says"), BAD.items())
def test_bad_sections_are_refused_with_their_place(tmp_path, monkeypatch, devices, says):
    file = tmp_path / "bad.yaml"
    file.write_text(f"{SCENARIO}devices:\n  {devices}\n")
    (tmp_path / "mine.yaml").write_text("kind: board\npeak: 3\nsource: me\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ScenarioError) as info:
        load(file)
    text = str(info.value)
    assert text.startswith(str(tmp_path)), text
    assert says in text
    assert ":" in text.removeprefix(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name,peak_gflop\na,3\n", "Did you mean 'peak_gflops'?"),
        ("name,peak_gflops\na,-3\n", "must be greater than 0"),
        ("name,peak_gflops\na,3 GFLOP\n", "must be a valid number"),
        ("name,peak_gflops\n", "has no rows"),
    ],
)
def test_bad_tables_are_refused(tmp_path, text, says):
    file = tmp_path / "mine.csv"
    file.write_text(text)
    with pytest.raises(FedsimError, match=says.replace("?", r"\?")) as info:
        tables.read(str(file), "pixel-4", None)
    assert str(info.value).startswith(str(file))


def test_a_section_survives_its_yaml(tmp_path):
    file = tmp_path / "good.yaml"
    file.write_text(f"{SCENARIO}devices:\n  mix: [{TX2}]\n  availability: diurnal\n")
    scenario = load(file)
    again = tmp_path / "again.yaml"
    again.write_text(scenario.to_yaml())
    assert load(again) == scenario
    assert json.loads(scenario.model_dump_json())["devices"]["availability"]["name"] == "diurnal"
