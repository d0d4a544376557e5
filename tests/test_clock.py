"""Times, energy and rounds with numbers that a person can check."""

import math

import pytest

from fedsim.clock import Work, compute_s, settle, transfer_s, trip
from fedsim.devices import profiles
from fedsim.devices.fleet import Device, Fleet, shared
from fedsim.devices.section import DevicesSection
from fedsim.seeds import Seeds

PLAIN = Device(
    client=0, profile="x", mode="", flops_per_s=1e9, launch_s=0.5, inference_s=None,
    memory_bytes=10**9, memory_bytes_per_s=1e12, down_mbps=8.0, up_mbps=4.0, latency_s=0.25,
    overhead=1.0, compute_w=10.0, idle_w=1.0, receive_w=2.0, send_w=3.0, tail_j=0.0,
)  # fmt: skip
WORK = Work(down_bytes=10**6, up_bytes=10**6, flops=4e9, batches=2, examples=10)


def test_a_trip_is_latency_transfers_and_compute():
    one = trip(PLAIN, WORK, start_s=100.0)
    assert (one.download_s, one.compute_s, one.upload_s) == (1.25, 5.0, 2.0)
    assert one.end_s == 108.25
    assert one.energy_j == pytest.approx(2 * 1.0 + 10 * 5.0 + 3 * 2.0)
    assert (one.down_bytes, one.up_bytes, one.stopped) == (10**6, 10**6, "")


def test_weights_must_be_read_and_measured_times_replace_flops():
    from dataclasses import replace

    slow = replace(PLAIN, memory_bytes_per_s=1e9)
    assert compute_s(slow, Work(batches=2, weight_bytes=10**9)) == 6 + 1
    measured = replace(PLAIN, inference_s=0.1)
    assert compute_s(measured, WORK) == pytest.approx(3 * 10 * 0.1 + 1)


def test_the_published_transfer():
    assert transfer_s(1.18e6, 10) == pytest.approx(0.944)


def test_lte_radio_energy():
    lte = profiles.network("lte").model_copy(
        update={"uplink_mbps": 6.0, "downlink_mbps": 13.0, "overhead": 1.0, "tail_j": 0.0}
    )
    section = DevicesSection.model_validate(
        {"mix": [{"profile": "pixel-4", "share": 1, "network": lte.model_dump()}]}
    )
    device = Fleet(section, Seeds(0), 1).device(0)
    one = trip(device, Work(up_bytes=10**6))
    assert one.upload_s == pytest.approx(1.3333, rel=1e-4)
    assert one.energy_j == pytest.approx(5.22, rel=1e-3)


def test_a_vanished_client_is_charged_for_what_it_did():
    one = trip(PLAIN, WORK, vanish=0.5)  # 4.125 of 8.25 s: in the middle of training
    assert one.stopped == "train"
    assert (one.download_s, one.compute_s, one.upload_s) == (1.25, 2.875, 0.0)
    assert (one.down_bytes, one.up_bytes) == (10**6, 0)
    assert one.energy_j == pytest.approx(2 * 1.0 + 10 * 2.875)
    late = trip(PLAIN, WORK, vanish=7.25 / 8.25)
    assert (late.stopped, late.up_bytes) == ("upload", 500_000)


def test_absence_pauses_or_aborts():
    def change(time):
        return (True, 4.0) if time < 4 else (False, 10.0) if time < 10 else (True, math.inf)

    paused = trip(PLAIN, WORK, change=change)
    assert paused.end_s == 14.25
    assert paused.wait_s == 6.0
    assert paused.energy_j == pytest.approx(58 + 6.0)
    aborted = trip(PLAIN, WORK, change=change, pause=False)
    assert (aborted.stopped, aborted.end_s, aborted.compute_s) == ("train", 4.0, 2.75)


def test_the_first_answers_end_the_round():
    three = [5.0, 9.0, 30.0]
    assert settle(three, [True] * 3, 0.0, 2).end_s == 9.0
    assert settle(three, [True] * 3, 0.0, 3).end_s == 30.0
    by_deadline = settle(three, [True] * 3, 0.0, 3, deadline_s=10.0)
    assert (by_deadline.kept, by_deadline.late, by_deadline.end_s) == ((0, 1), (2,), 10.0)
    assert settle(three, [True, False, True], 0.0, 3).kept == (0, 2)
    nobody = settle(three, [False] * 3, 0.0, 3, deadline_s=100.0)
    assert (nobody.kept, nobody.end_s) == ((), 30.0)
    assert settle([math.inf], [False], 5.0, 1, deadline_s=10.0).end_s == 15.0


def test_clients_share_the_servers_link():
    section = DevicesSection.model_validate(
        {"mix": [{"profile": "pixel-4", "share": 1}], "server": {"uplink_mbps": 20}}
    )
    ten = shared(PLAIN, section, 10)
    assert (ten.down_mbps, ten.up_mbps) == (2.0, 4.0)
