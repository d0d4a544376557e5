"""Who is there when: shares, memory, day and night, traces; always the same answer for a time."""

import json
import math

import numpy as np
import pytest

from fedsim.availability import (
    Bernoulli,
    Context,
    Cyclic,
    Diurnal,
    Markov,
    Recorded,
    advance,
    label_rates,
)
from fedsim.devices.traces import Presence
from fedsim.errors import ScenarioError
from fedsim.seeds import Seeds

CONTEXT = Context(Seeds(1))
CLIENTS = np.arange(4000)
ALL = [
    Bernoulli(name="bernoulli", rate=0.3),
    Markov(name="markov", rate=0.3),
    Markov(name="markov", rate=0.02),
    Cyclic(name="cyclic", rate=0.3, period=10),
    Diurnal(name="diurnal", time_zones_h=(0.0, 8.0)),
]


def history(process, slots: int) -> np.ndarray:
    """Presence in slots x clients."""
    length = process.slot_s or 1.0
    return np.array([process.available(CLIENTS, k * length, CONTEXT) for k in range(slots)])


@pytest.mark.parametrize("process", ALL, ids=lambda p: p.name)
def test_a_state_is_a_function_of_client_and_time_alone(process):
    length = process.slot_s or 1.0
    every = history(process, 40)
    some = np.array([17, 3, 2999])
    assert (process.available(some, 31 * length, CONTEXT) == every[31, some]).all()
    assert 0 < every.mean() < 1


@pytest.mark.parametrize("process", ALL, ids=lambda p: p.name)
def test_change_is_the_first_slot_with_another_state(process):
    length = process.slot_s or 1.0
    every = history(process, 60)
    for client in (0, 5, 11):
        end = process.change(client, 10.5 * length, CONTEXT)
        slot = round(end / length)
        assert (every[10:slot, client] == every[10, client]).all()
        assert slot >= 60 or every[slot, client] != every[10, client]


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_bernoulli_and_markov_have_the_share_they_are_given(rate):
    for process in (Bernoulli(name="bernoulli", rate=rate), Markov(name="markov", rate=rate)):
        assert history(process, 30).mean() == pytest.approx(rate, rel=0.03)


def test_markov_has_the_transition_rates_of_fedau():
    x = history(Markov(name="markov", rate=0.1, turn_on=0.05), 60)
    came = (x[1:] & ~x[:-1]).sum() / (~x[:-1]).sum()
    went = (~x[1:] & x[:-1]).sum() / x[:-1].sum()
    assert came == pytest.approx(0.05, rel=0.03)
    assert went == pytest.approx(0.05 * (1 / 0.1 - 1), rel=0.03)


def test_markov_scales_down_what_would_need_more_than_one():
    x = history(Markov(name="markov", rate=0.02), 60)
    assert not (x[1:] & x[:-1]).any()  # 0.05 * 49 > 1: an on client goes at once
    assert x.mean() == pytest.approx(0.02, rel=0.05)


def test_cyclic_is_one_turn_in_a_period():
    x = history(Cyclic(name="cyclic", rate=0.3, period=10), 20)
    assert (x[:10].sum(axis=0) == 3).all()
    assert (x[:10] == x[10:]).all()
    assert ((x[1:11] != x[:10]).sum(axis=0) == 2).all()  # in one piece
    assert x.sum(axis=1).std() < 200  # begun at random places


@pytest.mark.slow
def test_diurnal_follows_the_local_hour_with_sessions():
    process = Diurnal(name="diurnal", mean=0.15, swing=0.6, peak_h=2.5, session_h=1.5)
    by_hour = [process.available(CLIENTS, h * 3600 + 86400, CONTEXT).mean() for h in range(24)]
    wave = [0.15 * (1 + 0.6 * math.cos(2 * math.pi * (h - 2.5) / 24)) for h in range(24)]
    assert np.abs(np.array(by_hour) - wave).max() < 0.02
    x = history(process, 144)
    went = (~x[1:] & x[:-1]).sum() / x[:-1].sum()
    assert went == pytest.approx(1 / 9, rel=0.05)  # a session is nine slots on average


def test_time_zones_flatten_the_day():
    zones = tuple(float(h) for h in range(-10, 14, 2))
    process = Diurnal(name="diurnal", time_zones_h=zones)
    by_hour = [process.available(CLIENTS, h * 3600 + 86400, CONTEXT).mean() for h in range(24)]
    assert max(by_hour) - min(by_hour) < 0.05


def test_shares_follow_labels():
    counts = np.array([[10, 0], [0, 10], [5, 5]])
    process = Bernoulli(name="bernoulli", rate=0.4, min_rate=0.02, label_alpha=5.0)
    rates = label_rates(counts, process, Seeds(0))
    assert rates.mean() == pytest.approx(0.4)
    assert rates[2] == pytest.approx((rates[0] + rates[1]) / 2)
    context = Context(Seeds(0), rates)
    x = np.array([process.available(np.arange(3), k, context) for k in range(4000)])
    assert x.mean(axis=0) == pytest.approx(rates, abs=0.03)


def test_listed_rates_start_again():
    process = Bernoulli(name="bernoulli", rates=(0.9, 0.1))
    x = history(process, 20)
    assert x[:, ::2].mean() == pytest.approx(0.9, abs=0.01)
    assert x[:, 1::2].mean() == pytest.approx(0.1, abs=0.01)


def trace(tmp_path, **entry):
    file = tmp_path / "trace.json"
    file.write_text(json.dumps({"7": entry}))
    return Recorded(name="trace", file=str(file))


def test_trace_known_answers(tmp_path):
    process = trace(tmp_path, active=[0, 10], inactive=[5, 12], finish_time=20)
    one = np.array([0])
    on = [bool(process.available(one, t, CONTEXT)[0]) for t in (3, 11, 23, 7, 15, 1e6 + 3)]
    assert on == [True, True, True, False, False, True]


def test_work_is_done_in_available_time_only(tmp_path):
    process = trace(tmp_path, active=[0, 10], inactive=[5, 12], finish_time=20)

    def change(time):
        return bool(process.available(np.array([0]), time, CONTEXT)[0]), process.change(
            0, time, CONTEXT
        )

    assert advance([8.0], 3.0, change) == [24.0]  # 2 s to 5, 10 to 12, 20 to 24
    assert advance([2.0, 2.0, 4.0], 3.0, change) == [5.0, 12.0, 24.0]


def test_a_trace_that_is_always_on_never_changes():
    assert Presence((0.0,), (20.0,), 20.0).at(55.0) == (True, math.inf)
    assert Presence((), (), 20.0).at(55.0) == (False, math.inf)
    assert Presence((0.0, 15.0), (5.0, 20.0), 20.0).at(17.0) == (True, 25.0)


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"active": [0, 4], "inactive": [5, 12], "finish_time": 20}, "4 s comes after 5 s"),
        ({"active": [0], "inactive": [25], "finish_time": 20}, "20 s comes after 25 s"),
        ({"active": [0, 9], "inactive": [5], "finish_time": 20}, "2 active and 1 inactive"),
        ({"active": [0], "inactive": [5]}, "finish_time"),
        ({"active": ["x"], "inactive": [5], "finish_time": 2}, "no availability entry"),
    ],
)
def test_impossible_traces_are_refused(tmp_path, entry, says):
    process = trace(tmp_path, **entry)
    with pytest.raises(ScenarioError, match=says) as info:
        process.available(np.array([0]), 0.0, CONTEXT)
    assert "device 7" in str(info.value)
