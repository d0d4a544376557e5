"""Asynchronous runs: the order of arrivals, versions, equal bits, resuming, failures."""

import math
from dataclasses import dataclass

import numpy as np
import pytest

from fedsim import assembly, partners, plan, simulation
from fedsim.arrays import sha256
from fedsim.clients.sgd import SGD
from fedsim.data import partition
from fedsim.engine.blocks import BlockResult
from fedsim.engine.event_loop import EventLoop
from fedsim.engine.flights import Flight, Flights, Idle
from fedsim.engine.inline import InlineGrid
from fedsim.engine.worker import Recipe
from fedsim.errors import PluginError, RunError
from fedsim.seeds import Seeds
from fedsim.strategy import to_arrays, to_record
from tests.engine.runs import MISBEHAVE, comparable, stopped
from tests.problems import tiny


def flight(number: int, bound: float) -> Flight:
    return Flight(number, number, 0, 0.0, bound, {})


class Working:
    """Ends flights a while after their bound, and counts the calls."""

    def __init__(self, ends: dict[int, float]) -> None:
        self.ends, self.calls = ends, []

    def __call__(self, flights) -> None:
        self.calls.append([f.number for f in flights])
        for one in flights:
            one.result, one.end_s = BlockResult([], []), self.ends[one.number]


def test_flights_land_in_order_of_their_true_ends():
    rng = np.random.default_rng(0)
    bounds = dict(enumerate(rng.integers(0, 20, 200).astype(float)))
    ends = {n: b + float(rng.integers(0, 8)) for n, b in bounds.items()}
    flights = Flights(Working(ends))
    for number, bound in bounds.items():
        flights.start(flight(number, bound))
    landed = [flights.land() for _ in range(200)]
    assert [(f.end_s, f.number) for f in landed] == sorted((e, n) for n, e in ends.items())


def test_flights_that_start_later_may_land_earlier():
    work = Working({1: 9.0, 2: 4.0, 3: 5.0})
    flights = Flights(work)
    flights.start(flight(1, 8.0))
    assert flights.next_end(horizon=7.0) == 8.0
    assert work.calls == []
    flights.start(flight(2, 3.0))
    assert flights.next_end() == 4.0
    assert work.calls == [[1, 2]]
    flights.start(flight(3, 5.0))
    assert flights.land().number == 2
    assert work.calls == [[1, 2]]
    assert [flights.land().number for _ in range(2)] == [3, 1]
    assert flights.next_end() == math.inf


def test_idle_clients_are_all_but_the_busy_ones():
    rng = np.random.default_rng(0)
    for total in (1, 2, 9, 40):
        for count in range(total + 1):
            busy = set(rng.choice(total, count, replace=False).tolist())
            idle = Idle(total, busy)
            assert list(idle) == sorted(set(range(total)) - busy)
            assert len(idle) == total - count
    assert Idle(10**9, {5})[10**9 - 2] == 10**9 - 1


class Fixed:
    """A timetable with a duration for each start; bounds are a part of it."""

    look_again_s = math.inf

    def __init__(self, total: int, duration, tightness: float = 1.0) -> None:
        self.total, self.duration, self.tightness = total, duration, tightness

    def idle(self, now, busy, number):
        return Idle(self.total, busy)

    def set_bounds(self, flights, down_bytes):
        for one in flights:
            one.bound_s = one.start_s + self.tightness * self.duration(one)

    def budgets(self, flight):
        return ()

    def arrive(self, flight, report):
        return flight.start_s + self.duration(flight)


def heavy_tailed(flight: Flight) -> float:
    speed = math.exp(1.5 * Seeds(1).numpy("speed", flight.client).normal())
    return speed * (0.5 + Seeds(1).numpy("time", flight.number).random())


def updates(scenario, count: int, duration=heavy_tailed, tightness=1.0, cut_at=None):
    """Weights after each update of an asynchronous run; cut and restored after ``cut_at``."""
    split = partition.make(scenario, scenario.seed)
    found, staleness = [], []
    with InlineGrid(Recipe(scenario, split.ownership, scenario.seed)) as grid:

        def fresh():
            strategy = assembly.build_strategy(scenario, grid.num_clients)
            assembly.connect(grid, strategy)
            strategy.begin(to_record(grid.facts["arrays"]))
            timetable = Fixed(grid.num_clients, duration, tightness)
            return strategy, EventLoop(strategy, grid, timetable)

        strategy, loop = fresh()
        for n in range(count):
            arrays, _ = loop.until_update(1.0)
            found.append(to_arrays(arrays))
            staleness += loop.staleness
            assert len(loop.versions) <= 1 + strategy.concurrency
            if n == cut_at:
                saved = loop.checkpoint(), dict(vars(strategy))
                strategy, loop = fresh()
                vars(strategy).update(saved[1])
                loop.restore(saved[0])
    return found, staleness, loop.now


def digests(found, staleness, now):
    return [sha256(arrays) for arrays in found], staleness, now


@pytest.mark.slow_variants
@pytest.mark.parametrize("name", ["fedasync", "fedbuff", "afa_cd", "afa_cs"])
def test_the_tightness_of_bounds_and_a_restart_change_nothing(name):
    options = {"buffer_size": 3} if name != "fedasync" else {}
    scenario = tiny(strategy={"name": name, **options}, clients_per_round=4)
    whole = digests(*updates(scenario, 12))
    assert digests(*updates(scenario, 12, tightness=0.0)) == whole
    assert digests(*updates(scenario, 12, tightness=0.5, cut_at=5)) == whole
    assert max(whole[1]) > 0


def test_equal_durations_and_a_buffer_for_all_are_fedavg():
    client = {"name": "sgd", "batch_size": 1000}  # whole batches: no random order
    strategy = {"name": "fedbuff", "buffer_size": 6, "normaliser": "examples"}
    found, staleness, now = updates(tiny(strategy=strategy, client=client), 3, lambda flight: 2.0)
    assert staleness == [0] * 18
    assert now == 6.0
    scenario = tiny(client=client)
    split = partition.make(scenario, scenario.seed)
    with InlineGrid(Recipe(scenario, split.ownership, scenario.seed)) as grid:
        average = assembly.build_strategy(scenario, grid.num_clients)
        assembly.connect(grid, average)
        result = average.start(grid, to_record(grid.facts["arrays"]), num_rounds=3)
    for name, x in to_arrays(result.arrays).items():
        np.testing.assert_allclose(found[-1][name], x, rtol=1e-5, atol=1e-6)


FLEET = {"mix": [{"profile": "phone-spread", "share": 1.0}], "speed_sigma": 1.5}


def anarchic(**changes):
    """Ten updates by clients of very unequal speed that choose their own number of steps."""
    values = {
        "strategy": {"name": "afa_cs", "buffer_size": 2},
        "client": {"max_local_steps": 4},
        "clients_per_round": 4,
        "num_rounds": 10,
        "devices": FLEET,
        "checkpoint": {"every": 1},
    }
    return tiny(**{**values, **changes})


def test_a_run_tells_time_staleness_and_bytes(tmp_path):
    run = simulation.run(anarchic(), out=tmp_path)
    rounds = run.rounds[1:]
    assert [r["round"] for r in rounds] == list(range(1, 11))
    assert all(r["clients/selected"] == 2 for r in rounds)
    times = [r["time/virtual_s_cum"] for r in rounds]
    assert times == sorted(times)
    assert sum(r["time/virtual_s"] for r in rounds) == pytest.approx(times[-1])
    assert max(r["agg/staleness_max"] for r in rounds) > 0
    assert rounds[-1]["agg/in_flight"] in (2, 3)
    rows = list(run.clients)
    assert len(rows) == 20
    assert sum(r["up_bytes"] for r in rows) == run.summary["totals"]["comm/up_bytes"]
    assert {r["local_steps"] for r in rows} <= {1, 2, 3, 4}
    assert len({r["local_steps"] for r in rows}) > 1
    assert sum(r["staleness"] for r in rows) > 0


KSEED = {
    "client": {"name": "kseed", "local_steps": 5, "batch_size": 4},
    "strategy": {"name": "fedbuff_kseed", "num_seeds": 32, "buffer_size": 2},
}


PERSONAL = {"data": {"client_test_fraction": 0.3}, "evaluate": {"personal": True}}


def topk(feedback, density: float = 0.3) -> list:
    return [{"name": "topk", "density": density, "error_feedback": feedback}]


@pytest.mark.slow_variants
@pytest.mark.parametrize(
    ("server_round", "changes"),
    [
        (2, {}),
        (5, {"client": {"name": MISBEHAVE + "Counting"}}),
        (9, {"strategy": {"name": "fedbuff", "buffer_size": 3, "server_momentum": 0.9}}),
        (4, {"strategy": "fedasync", "devices": {**FLEET, "dropout": 0.3}}),
        (5, {"codec": {"up": topk("ef14")}, "devices": {**FLEET, "dropout": 0.3}}),
        (5, {"codec": {"up": topk({"name": "ef21", "server": "mirrors"})}}),
        (5, {"codec": {"up": [{"name": "powersgd", "rank": 1}]}}),
        (4, {"codec": {"down": [{"name": "qsgd"}]}, **PERSONAL}),
        (5, {**KSEED}),
        (3, {**KSEED, "strategy": {**KSEED["strategy"], "pro": True, "replay": "clients"}}),
    ],
)
def test_resume_in_the_middle_gives_the_same_bits(tmp_path, server_round, changes):
    scenario = anarchic(**changes)
    whole = simulation.run(scenario, out=tmp_path / "whole")
    resumed = simulation.resume(stopped(scenario, tmp_path, server_round))
    assert resumed.summary["weights_sha256"] == whole.summary["weights_sha256"]
    assert comparable(resumed) == comparable(whole)


def test_what_the_server_believes_of_a_client_is_what_the_client_believes(tmp_path):
    """Compressing nothing, every feedback hands over the very updates."""
    plain = simulation.run(anarchic(), out=tmp_path)
    for feedback in ("ef14", {"name": "ef21", "server": "mirrors"}):
        run = simulation.run(anarchic(codec={"up": topk(feedback, 1.0)}), out=tmp_path)
        mine, its = (r.summary["key_metric"]["final"] for r in (run, plain))
        assert mine == pytest.approx(its, rel=1e-5)


@pytest.mark.parametrize(
    ("codec", "text"),
    [({"up": topk("ef21")}, "server: mirrors"), ({"down": topk("ef21")}, "need rounds")],
)
def test_memories_that_need_rounds_are_refused(tmp_path, codec, text):
    with pytest.raises(PluginError, match=text):
        simulation.run(anarchic(codec=codec), out=tmp_path)


def test_lost_and_failed_answers_are_counted_and_their_places_filled(tmp_path):
    client = {"name": MISBEHAVE + "Faulty", "victims": [0, 1]}
    fleet = {**FLEET, "dropout": 0.3}
    run = simulation.run(
        anarchic(client=client, devices=fleet, strategy="fedasync", num_rounds=20), out=tmp_path
    )
    totals = run.summary["totals"]
    assert totals["clients/completed"] == 20
    assert totals["clients/failed"] > 0
    assert totals["clients/dropped"] > 0
    assert totals["clients/selected"] == sum(
        totals[f"clients/{k}"] for k in ("completed", "failed", "dropped")
    )


@pytest.mark.slow
def test_a_client_that_ends_every_worker_fails_alone(tmp_path, impatient):
    client = {"name": MISBEHAVE + "Hungry", "killed": True, "at_round": 1}
    client |= {"while_exists": str(tmp_path), "max_local_steps": 4}
    engine = {"backend": "ray", "workers": 2}
    run = simulation.run(
        anarchic(client=client, engine=engine, clients_per_round=6, num_rounds=2), out=tmp_path
    )
    assert run.status == "done"
    (failed,) = [row for row in run.clients if row["status"] == "failed"]
    assert failed["client"] == 2
    assert "it ended every worker process" in failed["error"]


def test_a_run_in_which_everybody_fails_stops(tmp_path):
    client = {"name": MISBEHAVE + "Faulty", "victims": list(range(6))}
    with pytest.raises(RunError, match="100% of the latest clients failed up to round 1"):
        simulation.run(anarchic(client=client), out=tmp_path)


def test_clients_that_come_and_go_are_looked_for_again(tmp_path):
    process = {"name": "bernoulli", "rate": 0.2, "slot_s": 30.0}
    scenario = anarchic(devices={**FLEET, "availability": process})
    whole = simulation.run(scenario, out=tmp_path / "whole")
    assert whole.rounds[-1]["time/virtual_s_cum"] > 30.0
    resumed = simulation.resume(stopped(scenario, tmp_path, 6))
    assert comparable(resumed) == comparable(whole)


def test_a_method_that_announces_too_much_work_is_refused(tmp_path):
    with pytest.raises(PluginError, match="rehearse"):
        simulation.run(anarchic(client={"name": "tests.test_event_loop:Boaster"}), out=tmp_path)


@dataclass(kw_only=True)
class Boaster(SGD):
    """Announces its batches twice."""

    def rehearse(self, client):
        super().rehearse(client)
        super().rehearse(client)


ROUND_RULES = [
    ({}, "has no devices"),
    ({**FLEET, "deadline_s": 5.0}, "deadline_s"),
    ({**FLEET, "over_selection": 1.5}, "over_selection"),
    ({**FLEET, "min_replies": 3}, "min_replies"),
    ({**FLEET, "selection": "oort"}, "selection"),
    ({**FLEET, "server": {"round_s": 1.0}}, "round_s"),
    ({**FLEET, "availability": {"name": "bernoulli"}}, "slot_s"),
]


@pytest.mark.parametrize(("devices", "text"), ROUND_RULES)
def test_rules_of_rounds_are_refused(devices, text):
    with pytest.raises(PluginError, match=text) as caught:
        partners.check(anarchic(devices=devices or None))
    assert caught.value.key[0] in ("devices", "strategy")


@pytest.mark.parametrize("strategy", ["fedasync", {"name": "afa_cs", "buffer_size": 2}])
def test_a_plan_plays_updates(tmp_path, strategy):
    scenario = anarchic(strategy=strategy, client={"local_steps": 3})
    predicted = plan.make(scenario).record()
    happened = simulation.run(scenario, out=tmp_path).summary["totals"]
    for key in ("comm/up_bytes", "comm/down_bytes", "clients/completed", "work/flops"):
        assert predicted[key] == pytest.approx(happened[key]), key
    assert predicted["time/virtual_s"] == pytest.approx(happened["time/virtual_s"], rel=0.05)


def test_both_kinds_of_local_steps_are_refused():
    with pytest.raises(PluginError, match="max_local_steps"):
        SGD(local_steps=2, max_local_steps=3)


@pytest.mark.slow
def test_any_number_of_workers_gives_the_same_bits(tmp_path):
    engines = [{"backend": "inline"}, *({"backend": "ray", "workers": n} for n in (1, 2, 3))]
    runs = [simulation.run(anarchic(engine=engine), out=tmp_path) for engine in engines]
    assert len({run.summary["weights_sha256"] for run in runs}) == 1
    assert all(comparable(run) == comparable(runs[0]) for run in runs)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [KSEED, {"codec": {"up": topk("ef14")}}], ids=["seeds", "ef14"])
def test_messages_and_memories_of_their_own_are_the_same_bits_on_workers(tmp_path, changes):
    engines = [{"backend": "inline"}, {"backend": "ray", "workers": 2}]
    runs = [simulation.run(anarchic(engine=engine, **changes), out=tmp_path) for engine in engines]
    assert comparable(runs[0]) == comparable(runs[1])
    assert runs[0].summary["weights_sha256"] == runs[1].summary["weights_sha256"]
