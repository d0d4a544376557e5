"""Asynchronous runs: the order of arrivals, versions, equal bits, resuming, failures."""

import math

import numpy as np
import pytest

from fedsim import simulation
from fedsim.arrays import sha256
from fedsim.data import partition
from fedsim.engine.blocks import BlockResult
from fedsim.engine.event_loop import EventLoop
from fedsim.engine.flights import Flight, Flights, Idle
from fedsim.engine.inline import InlineGrid
from fedsim.engine.worker import Recipe
from fedsim.seeds import Seeds
from fedsim.strategy import to_arrays, to_record
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
            strategy = simulation.build_strategy(scenario, grid.num_clients)
            simulation.connect(grid, strategy)
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
        average = simulation.build_strategy(scenario, grid.num_clients)
        simulation.connect(grid, average)
        result = average.start(grid, to_record(grid.facts["arrays"]), num_rounds=3)
    for name, x in to_arrays(result.arrays).items():
        np.testing.assert_allclose(found[-1][name], x, rtol=1e-5, atol=1e-6)
