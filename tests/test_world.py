"""Rounds on the virtual clock: who takes part, who is in time, what is charged."""

import json
import math
import tracemalloc

import numpy as np
import pytest

from fedsim import assembly, simulation
from fedsim.availability import Context
from fedsim.engine.inline import InlineGrid
from fedsim.engine.world import World
from fedsim.seeds import Seeds
from fedsim.selection import Outcome, Pool
from fedsim.selectors.availability import Availability
from fedsim.selectors.oort import Oort
from tests.problems import tiny

LINK = {"downlink_mbps": 8, "uplink_mbps": 8, "source": "test"}
MIX = [
    {"profile": "jetson-nano", "share": 0.5, "network": LINK},
    {"profile": "edge-t4", "share": 0.5, "network": LINK},
]


def run(tmp_path, num_rounds=3, **changes):
    devices = {"mix": MIX, **changes.pop("devices", {})}
    scenario = tiny(devices=devices, num_rounds=num_rounds, **changes)
    return simulation.run(scenario, out=tmp_path)


def rows(result, server_round=None):
    return [r for r in result.clients if server_round in (None, r["round"])]


def test_devices_that_leave_nobody_out_change_no_weight(tmp_path):
    for changes in (
        {"clients_per_round": 3},
        {"strategy": {"name": "flwr.serverapp.strategy:FedMedian"}},
    ):
        with_devices = run(tmp_path, **changes).summary
        without = simulation.run(tiny(num_rounds=3, **changes), out=tmp_path).summary
        assert with_devices["weights_sha256"] == without["weights_sha256"]


def test_every_line_has_its_time_energy_and_memory(tmp_path):
    result = run(tmp_path, num_rounds=2)
    for r in rows(result):
        assert r["time/virtual_s"] == pytest.approx(
            r["time/download_s"] + r["time/compute_s"] + r["time/upload_s"]
        )
        assert r["time/upload_s"] == pytest.approx(8 * r["up_bytes"] / 8e6)
        assert r["work/flops"] == 2 * 2 * 4 * 3 * r["num_examples"]
        assert r["energy/joules"] > 0
        assert r["mem/peak_bytes"] > 0
        assert r["device"] in ("jetson-nano/MAXN", "edge-t4")
    first, second = result.rounds[1:]
    slowest = max(r["time/virtual_s"] for r in rows(result, 1))
    assert first["time/virtual_s"] == pytest.approx(slowest)
    assert second["time/virtual_s_cum"] == pytest.approx(
        first["time/virtual_s"] + second["time/virtual_s"]
    )
    assert result.summary["totals"]["energy/joules"] == pytest.approx(
        sum(r["energy/joules"] for r in rows(result))
    )
    assert "time/virtual_s_cum" not in result.summary["totals"]


def test_without_devices_nothing_is_timed(tmp_path):
    result = simulation.run(tiny(), out=tmp_path)
    assert not any("virtual" in key for r in result.rounds for key in r)
    assert not any("device" in r for r in rows(result))


def test_a_deadline_leaves_out_who_is_late_but_charges_it(tmp_path):
    result = run(tmp_path, num_rounds=1, devices={"deadline_s": 0.05})
    by_status = {s: [r for r in rows(result) if r["status"] == s] for s in ("ok", "late")}
    assert [r["device"] for r in by_status["ok"]] == ["edge-t4"] * 3
    assert [r["device"] for r in by_status["late"]] == ["jetson-nano/MAXN"] * 3
    record = result.rounds[1]
    assert record["time/virtual_s"] == pytest.approx(0.05)
    assert record["clients/late"] == 3
    assert record["clients/completed"] == 3
    assert record["comm/up_bytes"] == sum(r["up_bytes"] for r in rows(result))
    assert record["energy/wasted_joules"] == pytest.approx(
        sum(r["energy/joules"] for r in by_status["late"])
    )


def test_late_clients_do_not_move_the_weights(tmp_path):
    late = run(tmp_path, num_rounds=1, devices={"deadline_s": 0.05})
    kept = [r["client"] for r in rows(late) if r["status"] == "ok"]
    with InlineGrid(recipe_of(tiny())) as grid:
        strategy = assembly.build_strategy(tiny(), 6)
        assembly.connect(grid, strategy)
        grid.reduce = False  # as where clients may be left out
        grid.offer(kept)
        arrays = simulation.to_record(grid.facts["arrays"])
        messages = strategy.configure_train(1, arrays, simulation.ConfigRecord(), grid)
        weights, _ = strategy.aggregate_train(1, grid.send_and_receive(messages))
    from fedsim.arrays import sha256

    assert late.summary["weights_sha256"] == sha256(simulation.to_arrays(weights))


def recipe_of(scenario):
    from fedsim.data import partition

    return simulation.Recipe(scenario, partition.make(scenario, scenario.seed).ownership, 3)


def test_over_selection_keeps_the_first_answers(tmp_path):
    devices = {"over_selection": 2.0}
    result = run(tmp_path, num_rounds=1, clients_per_round=3, devices=devices)
    times = {r["client"]: r["time/virtual_s"] for r in rows(result)}
    kept = {r["client"] for r in rows(result) if r["status"] == "ok"}
    assert len(times) == 6
    assert kept == set(sorted(times, key=times.__getitem__)[:3])
    assert result.rounds[1]["time/virtual_s"] == pytest.approx(sorted(times.values())[2])


def test_dropout_charges_what_was_done(tmp_path):
    result = run(tmp_path, num_rounds=40, devices={"dropout": 0.3})
    dropped = [r for r in rows(result) if r["status"] == "dropped"]
    assert 0.2 < len(dropped) / len(rows(result)) < 0.4
    assert {r["stopped_in"] for r in dropped} >= {"train", "download"}
    for r in dropped:
        assert r["stopped_in"] == "upload" or r["up_bytes"] == 0
        assert (r["stopped_in"] == "download") == (r["time/compute_s"] == 0)
    assert any(r["energy/joules"] > 0 for r in dropped)


def test_too_few_answers_change_nothing(tmp_path):
    devices = {"deadline_s": 0.05, "min_replies": 4}
    result = run(tmp_path, num_rounds=2, devices=devices)
    assert {r["status"] for r in rows(result)} == {"late", "void"}
    assert result.rounds[2]["clients/completed"] == 0
    assert result.rounds[0]["eval/loss"] == result.rounds[2]["eval/loss"]
    warnings = [line for line in result.events if "a round changed nothing" in line]
    assert len(warnings) == 2
    assert "clients answered in time, and min_replies is 4" in warnings[0]


def small(memory_gb: float, tmp_path) -> dict:
    from fedsim.devices.profiles import SHIPPED

    text = (SHIPPED / "jetson-tx2.yaml").read_text().replace("memory_gb: 8", "memory_gb: 8")
    file = tmp_path / "small.yaml"
    file.write_text(text.replace("usable_memory_gb: 4.8", f"usable_memory_gb: {memory_gb}"))
    return {"profile": str(file), "share": 0.5, "network": LINK}


def test_a_device_without_memory_does_nothing(tmp_path):
    mix = [small(2.4e-7, tmp_path), MIX[1] | {"share": 0.5}]  # 240 bytes
    result = run(tmp_path, num_rounds=1, devices={"mix": mix})
    oom = [r for r in rows(result) if r["status"] == "oom"]
    assert len(oom) == 3
    assert all(r["up_bytes"] == 0 and r["down_bytes"] > 0 for r in oom)
    assert all(r["mem/peak_bytes"] > 240 for r in oom)
    assert result.rounds[1]["clients/oom"] == 3
    assert result.rounds[1]["clients/completed"] == 3


def test_smaller_batches_give_the_same_step_up_to_rounding(tmp_path):
    client = {"name": "sgd", "batch_size": 8, "learning_rate": 0.1}
    whole = run(tmp_path, num_rounds=1, client=client)
    fit = run(tmp_path, num_rounds=1, client=client)
    peak = max(r["mem/peak_bytes"] for r in rows(fit))
    mix = [small((peak - 40) * 1e-9, tmp_path), MIX[1] | {"share": 0.5}]
    devices = {"mix": mix, "out_of_memory": "accumulate"}
    pieces = run(tmp_path, num_rounds=1, client=client, devices=devices)
    assert {r["rows_at_once"] for r in rows(pieces)} == {4, 8}
    assert all(r["mem/peak_bytes"] <= peak - 40 for r in rows(pieces) if r["rows_at_once"] == 4)
    assert {r["status"] for r in rows(pieces)} == {"ok"}
    assert pieces.rounds[1]["eval/loss"] == pytest.approx(whole.rounds[1]["eval/loss"], rel=1e-5)


def test_absent_clients_are_not_chosen(tmp_path):
    availability = {"name": "bernoulli", "rate": 0.5}
    result = run(tmp_path, num_rounds=30, devices={"availability": availability})
    context = Context(Seeds(3))
    process = tiny(devices={"mix": MIX, "availability": availability}).devices.availability
    for n in range(1, 31):
        there = np.flatnonzero(process.available(np.arange(6), n - 1, context))
        assert [r["client"] for r in rows(result, n)] == there.tolist()


def test_a_round_without_anybody_passes(tmp_path):
    availability = {"name": "bernoulli", "rate": 0.02}
    for strategy in ("fedavg", "flwr.serverapp.strategy:FedAvg"):
        result = run(
            tmp_path, 5, strategy={"name": strategy}, devices={"availability": availability}
        )
        assert result.rounds[-1]["round"] == 5
        assert sum(r["clients/selected"] for r in result.rounds[1:]) < 5


def trace(tmp_path) -> dict:
    file = tmp_path / "trace.json"
    entry = {"active": [0, 10], "inactive": [5, 12], "finish_time": 20}
    file.write_text(json.dumps({"1": entry}))
    return {"name": "trace", "file": str(file)}


def slow_world(tmp_path, **devices) -> tuple[World, object]:
    scenario = tiny(devices={"mix": MIX, "availability": trace(tmp_path), **devices})
    from fedsim.engine.blocks import Report

    world = World(scenario, 6, 3, Context(Seeds(3)))
    return world, Report(0, down_bytes=8_000_000)  # 8 s at 8 Mb/s


def test_the_published_paused_trip(tmp_path):
    world, report = slow_world(tmp_path)
    device = world.fleet.device(0)
    assert world.trip(report, device, 3.0).end_s == 24.0
    late = slow_world(tmp_path, deadline_s=20)[0]
    late._start = 3.0
    report.trip, report.status = world.trip(report, device, 3.0), "ok"
    late._settle([report])
    assert report.status == "late"


def test_abort_loses_the_work(tmp_path):
    world, report = slow_world(tmp_path, interruption="abort")
    one = world.trip(report, world.fleet.device(0), 3.0)
    assert (one.end_s, one.stopped, one.down_bytes) == (5.0, "download", 2_000_000)


def test_the_server_waits_until_somebody_is_there(tmp_path):
    file = tmp_path / "night.json"
    file.write_text(json.dumps({"1": {"active": [5000], "inactive": [80000], "finish_time": 9e4}}))
    availability = {"name": "trace", "file": str(file)}
    result = run(tmp_path, num_rounds=1, devices={"availability": availability})
    assert 5000 < result.rounds[1]["time/virtual_s"] < 5000 + 600 + 10


DIURNAL = {"name": "diurnal", "time_zones_h": [-8.0, 0.0, 8.0]}


def traced(call):
    """What a call returns, and how many bytes it held at most."""
    tracemalloc.start()
    try:
        return call(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow_variants
@pytest.mark.parametrize("selection", ["uniform", "availability", "oort"])
def test_nothing_is_made_for_each_of_a_million_clients(selection):
    scenario = tiny(
        num_clients=1_000_000,
        clients_per_round=100,
        devices={"mix": MIX, "availability": DIURNAL, "selection": selection},
    )
    world = World(scenario, 1_000_000, 0, Context(Seeds(0)))
    for n in range(1, 8):
        chosen, peak_bytes = traced(lambda n=n: world.offer(n))
        assert peak_bytes < 500_000
        assert len(set(chosen)) == 100
        assert world.is_available(np.array(chosen), n).all()
        seen = [Outcome(c, 1.0, 10, 0.5, True) for c in chosen]
        world.selector.learn(n, seen, world.state)
        world.now += 3600


def pool(**changes) -> Pool:
    values = {
        "num_clients": 100,
        "server_round": 5,
        "available": lambda ids: ids % 2 == 0,
        "seconds": lambda c: 10.0,
        "stays": lambda ids, after_s: ids > after_s,
        "generator": np.random.default_rng(0),
    }
    return Pool(**{**values, **changes})


def test_sampling_is_uniform_over_available_clients():
    counts = np.zeros(100)
    for seed in range(400):
        for c in pool(generator=np.random.default_rng(seed)).sample(10):
            counts[c] += 1
    assert counts[1::2].sum() == 0
    assert counts[::2].mean() == 80
    assert counts[::2].std() < 1.3 * math.sqrt(80 * 0.8)
    assert sorted(pool().sample(80)) == list(range(0, 100, 2))
    assert pool(available=lambda ids: ids < 0).sample(10) == []


def test_the_availability_selector_prefers_who_stays():
    chosen = Availability(margin=5.0).choose(10, pool(), {})
    assert all(c > 10 for c in chosen)


def test_oort_prefers_large_losses_and_fast_devices():
    state: dict = {}
    oort = Oort(least_exploration=0.0, exploration=0.0, alpha=2.0)
    seen = [
        Outcome(2, 1.0, 10, 2.0, True), Outcome(4, 1.0, 10, 1.0, True),
        Outcome(6, 4.0, 10, 2.0, True), Outcome(7, 1.0, 10, 9.0, True),
    ]  # fmt: skip
    oort.learn(1, seen, state)
    gains = dict(zip(state["clients"].tolist(), oort.utility(1, state), strict=True))
    assert gains[2] == pytest.approx(20.0)
    assert gains[6] == pytest.approx(20.0 / 16)  # four times the preferred time
    assert oort.choose(2, pool(), state) == [2, 4]  # 7 is not available
    explores = Oort(exploration=1.0, exploration_decay=1.0)
    assert not {2, 4, 6} & set(explores.choose(5, pool(), state))


@pytest.mark.parametrize(
    "devices",
    [
        {"over_selection": 1.5, "dropout": 0.2, "selection": "oort"},
        {"availability": DIURNAL | {"mean": 0.5}, "deadline_s": 60},
    ],
    ids=["oort", "diurnal"],
)
@pytest.mark.slow
def test_workers_and_resume_give_the_same_bits(tmp_path, devices):
    from fedsim.results import Run

    changes = {"clients_per_round": 3, "checkpoint": {"every": 2}, "devices": devices}
    inline = run(tmp_path, 6, **changes)
    ray = run(tmp_path, 6, engine={"backend": "ray", "workers": 2}, **changes)
    assert inline.summary["weights_sha256"] == ray.summary["weights_sha256"]
    timed = [r["time/virtual_s_cum"] for r in inline.rounds[1:]]
    assert timed == [r["time/virtual_s_cum"] for r in ray.rounds[1:]]
    path = inline.path
    (path / "checkpoints" / "round-000006.safetensors").unlink()
    (path / "STATUS").write_text("interrupted\n")
    again = simulation.resume(path)
    assert again.summary["weights_sha256"] == inline.summary["weights_sha256"]
    assert [r["time/virtual_s_cum"] for r in Run.open(path).rounds[1:]] == timed


def test_bytes_by_part_add_up_when_messages_are_cut_off(tmp_path):
    result = run(tmp_path, num_rounds=3, devices={"dropout": 0.6})
    assert {r["status"] for r in rows(result)} == {"ok", "dropped"}
    for record in result.rounds[1:]:
        for way in ("up", "down"):
            prefix, total = f"comm/{way}_", f"comm/{way}_bytes"
            parts = [
                value
                for key, value in record.items()
                if key.startswith(prefix) and key.endswith("_bytes") and key != total
            ]
            assert sum(parts) == record[total]
