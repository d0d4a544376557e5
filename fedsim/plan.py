"""What a scenario will cost, before it runs: bytes, FLOPs, memory, virtual time, energy, wall time.

A few clients are trained for real (about ten seconds): what they sent, computed and took
is the measure for all; where the server's messages grow with time (FedKSeed, Ferret), the
first round's are. Rounds are then played on the scenario's own world, with the same devices,
presence and choice of clients as in the run, but with predicted work instead of training.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fedsim import registry
from fedsim.assembly import build_strategy
from fedsim.clock import trip
from fedsim.cost import Spent
from fedsim.data import partition
from fedsim.devices.section import DevicesSection, MixEntry
from fedsim.engine.blocks import Block, BlockResult, Report
from fedsim.engine.inline import InlineGrid
from fedsim.engine.worker import Recipe
from fedsim.engine.world import World, work_of
from fedsim.errors import ScenarioError
from fedsim.playing import play_updates
from fedsim.probe import Probe, spread
from fedsim.scenario import Scenario
from fedsim.units import human_bytes, human_time

MOST_ROUNDS = 200
"""Rounds that are played; more are taken to be like them."""
_REFERENCE = DevicesSection(mix=(MixEntry(profile="edge-a100", share=1.0),))
"""Stands in where a scenario has no devices; its times are not shown."""


@dataclass(frozen=True)
class DeviceClass:
    """One kind of device of the fleet, and whether it can hold the work.

    Attributes:
        clients: How many clients have it.
        memory_bytes: What training may use on it.
        rows_at_once: Rows of a batch that it can hold; 0 if none.
    """

    profile: str
    clients: int
    memory_bytes: int
    rows_at_once: int


@dataclass(frozen=True)
class Plan:
    """Predictions; totals are those of all rounds.

    Attributes:
        rounds: The played rounds, as lines of ``rounds.jsonl``.
        needed_bytes: Peak memory of a training step on a whole batch.
    """

    scenario: Scenario
    num_rounds: int
    num_clients: int
    clients_per_round: float
    down_bytes: float
    up_bytes: float
    flops: float
    needed_bytes: int
    wall_s: float
    probed: int
    classes: list[DeviceClass] = field(default_factory=list)
    rounds: list[dict[str, Any]] = field(default_factory=list)

    @property
    def seconds(self) -> list[float]:
        """Virtual time of each played round."""
        return [r["time/virtual_s"] for r in self.rounds]

    def record(self) -> dict[str, Any]:
        """The predictions under the keys of a run's summary."""
        scale = self.num_rounds / max(1, len(self.rounds))
        record: dict[str, Any] = {
            "name": self.scenario.name,
            "rounds": self.num_rounds,
            "clients": self.num_clients,
            "clients_per_round": self.clients_per_round,
            "comm/down_bytes": round(self.down_bytes),
            "comm/up_bytes": round(self.up_bytes),
            "work/flops": self.flops,
            "mem/device_peak_bytes": self.needed_bytes,
            "time/wall_s": self.wall_s,
            "probed_clients": self.probed,
        }
        if self.scenario.devices is None:
            return record
        return record | {
            "time/virtual_s": scale * math.fsum(self.seconds),
            "round/virtual_s_median": float(np.median(self.seconds)),
            "round/virtual_s_p95": float(np.percentile(self.seconds, 95)),
            "energy/joules": scale * math.fsum(r["energy/joules"] for r in self.rounds),
            "clients/completed": scale * sum(r["clients/completed"] for r in self.rounds),
            "devices": [vars(c) for c in self.classes],
        }


def make(scenario: Scenario) -> Plan:
    """Predict what a scenario costs.

    Raises:
        ScenarioError: No device of the fleet can hold the work, or none can meet the deadline.
        FedsimError: The scenario cannot be built.
    """
    timed = scenario if scenario.devices else scenario.model_copy(update={"devices": _REFERENCE})
    cold = timed.model.model_copy(update={"warm_start": None})
    split = partition.make(timed, timed.seed)
    recipe = Recipe(timed.model_copy(update={"model": cold}), split.ownership, timed.seed)
    with InlineGrid(recipe) as grid:
        world = world_of(recipe, grid)
        _check_memory(grid, world)
        probe = Probe(grid, world)
        plan = _play(scenario, probe, world)
        _check_deadline(world, [probe.report(c) for c in spread(split.num_clients, 200)])
        return plan


def world_of(recipe: Recipe, grid: InlineGrid) -> World:
    """The world of a scenario with devices, told the size of the model."""
    world = World.of(recipe)
    assert world is not None
    world.weight_bytes = grid.facts["weight_bytes"]
    strategy = build_strategy(recipe.scenario, world.num_clients)
    world.overlaps = bool(getattr(strategy, "overlaps", False))
    return world


def check(grid: InlineGrid, world: World) -> None:
    """Refuse, without training, what no client can do.

    Raises:
        ScenarioError: No device can hold the work, or the time to receive the weights and train one
            batch is above the deadline for everybody; with the nearest value that would do.
    """
    flops = _check_memory(grid, world)
    one = Report(0, down_bytes=grid.broadcast().num_bytes, spent=Spent(flops=flops, batches=1))
    _check_deadline(world, [replace(one, client=c) for c in spread(grid.num_clients, 200)])


def _check_memory(grid: InlineGrid, world: World) -> int:
    """Refuse a fleet in which nobody can hold a training step; returns the FLOPs of the least."""
    needs = [_memory(grid, world, c) for c in spread(grid.num_clients, 20)]
    largest = max(kind.profile.usable_memory_gb * 1e9 for kind in world.fleet.kinds)
    least = min(n.least for n in needs)
    if largest < least:
        raise ScenarioError(
            f"no device of the fleet can hold a training step: it needs {human_bytes(least)}, and "
            f"the largest has {human_bytes(largest)} for training",
            key=("devices", "table" if world.section.table else "mix"),
            hint=f"Nearest valid value: a profile with usable_memory_gb of at least "
            f"{_up(least / 1e9)}; or take a smaller batch, fewer trained parameters, or "
            "out_of_memory: accumulate",
        )
    return min(n.flops for n in needs)


@dataclass(frozen=True)
class _Need:
    """Memory of a whole batch and of the smallest one allowed, and FLOPs of the whole."""

    whole: int
    least: int
    flops: int


def _memory(grid: InlineGrid, world: World, client: int) -> _Need:
    meter = grid.worker.meter
    assert meter is not None
    if meter.method is None:
        return _Need(0, 0, 0)
    batch = meter.largest_batch(client)
    shrinks = world.section.out_of_memory == "accumulate" and meter.method.accumulates
    smallest = meter.largest_batch(client, 1) if shrinks else batch
    return _Need(meter.memory_bytes(batch), meter.memory_bytes(smallest), meter.flops(batch))


def _check_deadline(world: World, reports: Sequence[Report]) -> None:
    deadline = world.section.deadline_s
    if deadline is None:
        return
    fastest = min(
        trip(world.fleet.device(r.client), work_of(r, world.weight_bytes)).elapsed_s
        for r in reports
    )
    if fastest > deadline:
        raise ScenarioError(
            f"no client can meet the deadline of {deadline:g} s: the fastest of {len(reports)} "
            f"needs {fastest:.3g} s",
            key=("devices", "deadline_s"),
            hint=f"Nearest valid value: {_up(fastest)}",
        )


def _up(value: float) -> str:
    """Rounded up to three digits."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return f"{math.ceil(value / unit) * unit:.6g}"


def _play(scenario: Scenario, probe: Probe, world: World) -> Plan:
    classes = _classes(probe, world)
    holds = {c.profile: c.rows_at_once for c in classes}
    count = min(scenario.num_rounds, MOST_ROUNDS)
    if getattr(registry.find("strategies", scenario.strategy.name), "by_events", False):
        return _sum_up(scenario, probe, classes, *play_updates(probe, world, count))
    records, reports_of = [], []
    for server_round in range(1, count + 1):
        reports = [probe.report(c) for c in world.offer(server_round)]
        for report in reports:
            _fit(report, holds[world.fleet.device(report.client).profile], probe)
        clients = tuple(r.client for r in reports)
        states: list[Any] = [None] * len(clients)
        block = Block(server_round, clients, tuple(states), {}, reduce=False)
        result = BlockResult(reports, states, payloads=[b""] * len(clients))
        if world.leaves_out:
            world.judge([(block, result)])
        else:
            world.follow(block, result)
        done = sum(r.status == "ok" for r in reports)
        records.append({"clients/completed": done} | world.close_round(server_round, reports))
        reports_of.append(reports)
    return _sum_up(scenario, probe, classes, records, reports_of)


def _fit(report: Report, rows_at_once: int, probe: Probe) -> None:
    """Leave out a client without memory; count the launches of one with smaller batches."""
    if rows_at_once == 0:
        report.status, report.up_bytes = "oom", 0
        report.spent = Spent(memory_bytes=report.spent.memory_bytes)
        return
    batch_size = getattr(probe.grid.worker.method, "batch_size", None) or rows_at_once
    pieces = -(-min(batch_size, report.num_examples) // rows_at_once)
    report.spent = replace(report.spent, batches=report.spent.batches * pieces)


def _classes(probe: Probe, world: World) -> list[DeviceClass]:
    """Kinds of devices by how many of (up to 10,000 of) the clients have them."""
    clients = spread(probe.grid.num_clients, 10_000)
    kinds = np.bincount([world.fleet.kind_of(c) for c in clients], minlength=1)
    widest = max(
        spread(probe.grid.num_clients, 20), key=lambda c: _memory(probe.grid, world, c).whole
    )
    found: dict[str, DeviceClass] = {}
    for i in np.flatnonzero(kinds):
        kind = world.fleet.kinds[i]
        budget = int(kind.profile.usable_memory_gb * 1e9)
        count = round(kinds[i] / len(clients) * probe.grid.num_clients)
        rows = probe.rows_at_once(widest, budget)
        before = found.get(kind.name)
        count += before.clients if before else 0
        found[kind.name] = DeviceClass(kind.name, count, budget, rows)
    return list(found.values())


def _sum_up(
    scenario: Scenario,
    probe: Probe,
    classes: list[DeviceClass],
    records: list[dict[str, Any]],
    reports_of: list[list[Report]],
) -> Plan:
    reports = [r for reports in reports_of for r in reports]
    scale = scenario.num_rounds / max(1, len(records))
    evaluate = scenario.evaluate
    tests = 1 + -(-scenario.num_rounds // evaluate.every)
    asked = round(evaluate.fraction_evaluate * probe.grid.num_clients) if evaluate.personal else 0
    rows = sum(r.spent.examples or r.num_examples for r in reports if r.spent.batches)
    engine = scenario.engine
    workers = engine.workers if isinstance(engine.workers, int) else os.cpu_count() or 1
    parallel = workers if engine.backend == "ray" else 1
    return Plan(
        scenario=scenario,
        num_rounds=scenario.num_rounds,
        num_clients=probe.grid.num_clients,
        clients_per_round=len(reports) / max(1, len(records)),
        down_bytes=scale * sum(r.down_bytes for r in reports)
        + (tests - 1) * asked * probe.down_bytes,
        up_bytes=scale * sum(r.up_bytes for r in reports),
        flops=scale * sum(r.spent.flops for r in reports),
        needed_bytes=probe.memory_bytes,
        wall_s=scale * rows * probe.wall_per_row / parallel
        + tests * _test_s(probe.grid) / parallel,
        probed=len(probe.reports),
        classes=classes,
        rounds=records,
    )


def _test_s(grid: InlineGrid) -> float:
    start = time.perf_counter()
    grid.test(grid.facts["arrays"])
    return time.perf_counter() - start


def print_plan(plan: Plan) -> None:
    """Print a plan for people."""
    record = plan.record()
    rounds = f"{plan.num_rounds} rounds of {plan.clients_per_round:.4g} clients"
    print(f"{plan.scenario.name}: {rounds} out of {plan.num_clients:,}")
    per = plan.num_rounds * max(1e-9, plan.clients_per_round)
    print(f"  down   {human_bytes(plan.down_bytes):>10}, {human_bytes(plan.down_bytes / per)} each")
    print(f"  up     {human_bytes(plan.up_bytes):>10}, {human_bytes(plan.up_bytes / per)} each")
    print(f"  work   {plan.flops:10.3g} FLOP, {plan.flops / per:.3g} each")
    if plan.scenario.devices is not None:
        median, high = record["round/virtual_s_median"], record["round/virtual_s_p95"]
        total = human_time(record["time/virtual_s"])
        print(f"  time   {total:>10} virtual; a round {median:.3g} s (median), {high:.3g} s (95 %)")
        print(f"  energy {record['energy/joules']:10.3g} J")
        answers = record["clients/completed"] / plan.num_rounds
        print(f"  answers that count: {answers:.4g} a round")
    need = human_bytes(plan.needed_bytes) if plan.needed_bytes else "not known for a ClientApp"
    print(f"  memory {need:>10} on a device")
    if plan.scenario.devices is not None:
        for c in plan.classes:
            print(f"    {c.profile:<22} {c.clients:>9,} clients  {_verdict(c, plan)}")
    print(f"  here   {human_time(plan.wall_s):>10}, from {plan.probed} clients trained as a probe")


def _verdict(kind: DeviceClass, plan: Plan) -> str:
    has = f"{human_bytes(kind.memory_bytes)} for training"
    if kind.rows_at_once == 0:
        return f"{has}: out of memory"
    if plan.needed_bytes > kind.memory_bytes:
        return f"{has}: fits with {kind.rows_at_once} rows at once"
    return f"{has}: fits"
