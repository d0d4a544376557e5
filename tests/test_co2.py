"""CO2: the published recursion, and rounds whose communication hides behind computing."""

import numpy as np
import pytest

from fedsim import simulation
from fedsim.clock import Trip, overlapped_s
from fedsim.errors import PluginError
from fedsim.scenario import load
from fedsim.strategies.co2 import CO2
from tests.bad_scenarios import GOOD
from tests.engine.runs import outcome, six_rounds, stopped
from tests.problems import tiny

PLAIN = {"server_momentum": 0.0}


def starts(strategy: CO2, count: int, steps: int = 1) -> list[float]:
    """Where each round starts on f = x^2 / 2 from 1, one client, SGD with rate 0.1."""
    x, found = {"x": np.array([1.0])}, [1.0]
    for _ in range(count - 1):
        delta = {"x": x["x"] * (0.9**steps - 1)}
        x = strategy.server_update(x, delta, strategy.state)
        found.append(float(x["x"][0]))
    return found


@pytest.mark.parametrize(
    ("options", "steps", "published"),
    [
        (PLAIN, 1, [1, 1, 0.9, 0.8, 0.71, 0.63, 0.559, 0.496, 0.4401]),
        ({**PLAIN, "delay": 0}, 1, [1, 0.9, 0.81, 0.729]),
        (
            {"server_momentum": 0.5},
            1,
            [1, 1, 0.9, 0.75, 0.585, 0.4275, 0.29025, 0.178875, 0.094163],
        ),
        (PLAIN, 3, [1, 1, 0.729, 0.458, 0.260441, 0.136323]),
        ({**PLAIN, "gap": 2.0}, 1, [1, 1, 0.95, 0.9, 0.8525, 0.8075]),
        ({**PLAIN, "clip": 0.05}, 1, [1, 1, 0.95]),
    ],
)
def test_the_specifications_numbers(options, steps, published):
    assert starts(CO2(**options), len(published), steps) == pytest.approx(published, abs=5e-7)


def test_the_gap_is_one_until_something_moved_and_two_at_a_constant_pace():
    strategy = CO2(gap="gap_aware", **PLAIN)
    delta, x = {"x": np.array([3.0, 4.0])}, {"x": np.zeros(2)}
    moved = []
    for _ in range(400):
        before, x = x, strategy.server_update(x, delta, strategy.state)
        moved.append(float(np.linalg.norm(x["x"] - before["x"])))
    assert moved[:2] == [0.0, 5.0]  # gap 1: nothing had moved before
    assert moved[2] == pytest.approx(5 / (1 + 5 / 2.5))  # moves were 0 and 5
    assert moved[-1] == pytest.approx(2.5, rel=0.01)  # gap 2


def test_without_delay_and_momentum_it_is_fedavg(tmp_path):
    def weights(**strategy):
        run = simulation.run(tiny(strategy=strategy, num_rounds=2), out=tmp_path)
        return run.summary["weights_sha256"]

    assert weights(name="co2", delay=0, server_momentum=0) == weights(name="fedavg")
    assert weights(name="co2", server_momentum=0) != weights(name="fedavg")


# The clock


def trip(download_s: float, compute_s: float, upload_s: float) -> Trip:
    return Trip(0.0, 0.0, download_s, compute_s, upload_s, 0.0, 1, 1, 0.0)


def test_a_round_takes_the_longer_of_training_and_communication():
    slow_links, slow_device = trip(2.0, 1.0, 7.0), trip(1.0, 5.0, 3.0)
    assert overlapped_s([slow_links, slow_device], None) == (2.0 + 5.0, 7.0)
    assert overlapped_s([slow_links, slow_device], 7.0) == (7.0 + 2.0, 7.0)
    assert overlapped_s([slow_device], 3.0) == (5.0, 3.0)
    assert overlapped_s([], 3.0) == (3.0, 0.0)


LINK = {"downlink_mbps": 0.01, "uplink_mbps": 0.01, "source": "test"}
DEVICES = {"mix": [{"profile": "edge-t4", "share": 1, "network": LINK}], "speed_sigma": 0.0}


def test_hidden_communication_shortens_rounds_after_the_first(tmp_path):
    def rounds(**strategy):
        scenario = tiny(strategy=strategy, devices=DEVICES, num_rounds=3)
        return simulation.run(scenario, out=tmp_path)

    waits, hides = rounds(name="fedavg"), rounds(name="co2")
    stages = ("time/download_s", "time/compute_s", "time/upload_s")
    down, train, up = (max(row[s] for row in hides.clients) for s in stages)
    whole = [r["time/virtual_s"] for r in waits.rounds[1:]]
    overlapped = [r["time/virtual_s"] for r in hides.rounds[1:]]
    assert whole == pytest.approx([down + train + up] * 3)
    assert overlapped == pytest.approx([down + train, *[max(train, up + down)] * 2])
    assert hides.rounds[3]["comm/up_bytes_cum"] == waits.rounds[3]["comm/up_bytes_cum"]


def test_a_resumed_run_has_the_same_bits_and_times(tmp_path):
    strategy = {"name": "co2", "gap": "gap_aware", "clip": 0.05}
    scenario = six_rounds(strategy=strategy, devices=DEVICES)
    whole = simulation.run(scenario, out=tmp_path / "whole")
    for last in (1, 2, 5):
        path = stopped(scenario, tmp_path / f"stopped{last}", last + 1)
        assert outcome(simulation.resume(path)) == outcome(whole)


def test_deadlines_contradict_overlap(tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text(GOOD)
    late = ["devices={mix: [{profile: edge-t4, share: 1}], deadline_s: 3}", "strategy=co2"]
    with pytest.raises(PluginError, match="no round can leave answers out"):
        load(file, late)
    assert load(file, [*late, "strategy.delay=0"]).strategy.name == "co2"
