"""The world of a run: who is on line, how long work takes, who is in time; on a virtual clock.

A round goes: ``offer`` names the clients that may be chosen now, the engine trains them for real,
``follow`` gives every client its trip on the virtual clock, ``judge`` marks who is left out, and
``close_round`` moves the clock. All of it depends on seed, round and measured work, never on
workers.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from fedsim import registry
from fedsim.availability import Always, Bools, Context, Floats, Ids, Rated, label_rates
from fedsim.clock import Trip, Work, overlapped_s, settle, trip
from fedsim.data import partition
from fedsim.devices.fleet import Device, Fleet, shared
from fedsim.engine.blocks import ANSWERED, Block, BlockResult, Report
from fedsim.engine.worker import Recipe
from fedsim.errors import DataError, RunError
from fedsim.scenario import Scenario
from fedsim.seeds import Seeds
from fedsim.selection import Outcome, Pool, Selector

log = logging.getLogger("fedsim")
WAIT_S = 600.0
"""While nobody is available, the server looks again after this time."""
LONGEST_WAIT_S = 30 * 86400.0


class World:
    """Devices, presence and clock of one run.

    Args:
        scenario: With a section ``devices``.
        num_clients: Clients of the run.
        seed: Root seed.
        context: What presence depends on; made from the scenario by ``of``.

    Attributes:
        now: Virtual time in seconds since the run began.
        overlaps: The next cohort trains while the answers of the last one travel.
    """

    def __init__(self, scenario: Scenario, num_clients: int, seed: int, context: Context) -> None:
        assert scenario.devices is not None
        self.section = scenario.devices
        self.num_clients, self.seeds, self.context = num_clients, Seeds(seed), context
        self.fleet = Fleet(self.section, self.seeds, num_clients)
        self.selector: Selector = registry.build("selectors", self.section.selection.section)
        self.goal = scenario.cohort_size(num_clients)
        self.now = 0.0
        self.weight_bytes = 0
        self.overlaps = False
        self._uploading_s: float | None = None  # the last cohort's upload, where rounds overlap
        self.state: dict[str, Any] = {}
        self._typical = Work()
        self._start = self._end = self._closed_at = 0.0
        self._concurrent = 1

    @classmethod
    def of(cls, recipe: Recipe) -> World | None:
        """The world of a scenario, or None if it has no devices."""
        scenario = recipe.scenario
        if scenario.devices is None:
            return None
        seeds, rates = Seeds(recipe.seed), None
        process = scenario.devices.availability
        if isinstance(process, Rated) and process.label_alpha is not None and not process.rates:
            rates = label_rates(_label_counts(recipe, process), process, seeds)
        return cls(scenario, len(recipe.ownership.train), recipe.seed, Context(seeds, rates))

    # -- who takes part ------------------------------------------------------------------------

    def offer(self, server_round: int) -> list[int]:
        """The clients of a round, chosen among those that are available; may be none.

        The clock moves on while nobody is available.

        Raises:
            RunError: Nobody becomes available for a month.
        """
        wanted = min(self.num_clients, math.ceil(self.goal * self.section.over_selection - 1e-9))
        began = self.now
        while True:
            pool = self._pool(server_round)
            chosen = self.selector.choose(wanted, pool, self.state)
            if chosen or self.section.availability.by_round:
                self._start = self._end = self.now
                self._concurrent = len(chosen)
                return sorted(chosen)
            self.now += WAIT_S
            if self.now - began > LONGEST_WAIT_S:
                raise RunError(
                    f"no client became available in {LONGEST_WAIT_S / 86400:.0f} days of virtual "
                    f"time before round {server_round}",
                    hint="Look at devices.availability",
                )

    def is_available(self, clients: Ids, server_round: int) -> Bools:
        """Which clients are available when the round begins."""
        return self.section.availability.available(clients, self._time(server_round), self.context)

    def budgets(self, clients: Sequence[int], server_round: int) -> tuple[int, ...]:
        """Bytes of memory that the clients' devices have for training."""
        return tuple(self.fleet.device(c, server_round).memory_bytes for c in clients)

    def _pool(self, server_round: int) -> Pool:
        return Pool(
            num_clients=self.num_clients,
            server_round=server_round,
            available=lambda ids: self.is_available(ids, server_round),
            seconds=lambda c: trip(self.fleet.device(c, server_round), self._typical).elapsed_s,
            stays=lambda ids, after_s: self._stays(ids, after_s, server_round),
            generator=self.seeds.numpy("cohort", server_round),
        )

    def _time(self, server_round: int) -> float:
        return server_round - 1.0 if self.section.availability.by_round else self.now

    def _stays(self, clients: Ids, after_s: Floats, server_round: int) -> Bools:
        process = self.section.availability
        later = self._time(server_round) + (0.0 if process.by_round else after_s)
        return process.available(clients, later, self.context)

    # -- how it went ---------------------------------------------------------------------------

    @property
    def leaves_out(self) -> bool:
        """Whether clients that trained may be left out, so that blocks must not be averaged."""
        return self.section.leaves_out

    def judge(self, answers: Sequence[tuple[Block, BlockResult]]) -> None:
        """Follow all clients of a round; mark who is left out, and drop their payloads."""
        trained = [[r.status == "ok" for r in result.reports] for _, result in answers]
        for block, result in answers:
            self.follow(block, result)
        self._settle([r for _, result in answers for r in result.reports])
        for (_, result), was_good in zip(answers, trained, strict=True):
            good = [r for r, ok in zip(result.reports, was_good, strict=True) if ok]
            result.payloads = [
                data for r, data in zip(good, result.payloads, strict=False) if r.status == "ok"
            ]
            for i, report in enumerate(result.reports):
                if report.status in ("dropped", "interrupted"):
                    result.states[i] = None  # what it did is lost

    def follow(self, block: Block, result: BlockResult) -> None:
        """Give every client of a block its trip."""
        for report in result.reports:
            self.travel(
                report,
                block.server_round,
                start_s=self._start,
                concurrent=self._concurrent,
                draw=block.server_round,
            )

    def travel(
        self, report: Report, server_round: int, *, start_s: float, concurrent: int, draw: int
    ) -> None:
        """Give a client its trip, and mark it if it does not come back.

        Args:
            report: What it did; gets the trip.
            server_round: Decides about power mode and link.
            start_s: When the server sent the message.
            concurrent: Clients that share the server's bandwidth.
            draw: Names the draw of whether it vanishes.
        """
        device = shared(self.fleet.device(report.client, server_round), self.section, concurrent)
        report.device = f"{device.profile}/{device.mode}" if device.mode else device.profile
        works = report.status == "ok"
        vanish = self._vanish(report.client, draw) if works else None
        report.trip = self.trip(report, device, start_s, vanish)
        report.down_bytes, report.up_bytes = report.trip.down_bytes, report.trip.up_bytes
        report.down_parts = _as_far_as(report.down_parts, report.down_bytes)
        report.up_parts = _as_far_as(report.up_parts, report.up_bytes)
        if works and report.trip.stopped:
            report.status = "interrupted" if vanish is None else "dropped"
        elif works and math.isinf(report.trip.end_s):
            report.status = "interrupted"

    def trip(
        self, report: Report, device: Device, start_s: float, vanish: float | None = None
    ) -> Trip:
        """A client's way through a round that starts at some time."""
        work = work_of(report, self.weight_bytes)
        process = self.section.availability
        stays = isinstance(process, Always) or process.by_round
        change = None if stays else partial(self.presence, report.client)
        pause = self.section.interruption == "pause"
        return trip(device, work, start_s, change=change, pause=pause, vanish=vanish)

    def presence(self, client: int, time: float) -> tuple[bool, float]:
        """Whether a client is available at a time, and when that ends."""
        process, ids = self.section.availability, np.array([client])
        is_on = bool(process.available(ids, time, self.context)[0])
        return is_on, process.change(client, time, self.context)

    def _vanish(self, client: int, draw: int) -> float | None:
        """The part of its work after which a client vanishes for good; None for most."""
        if not self.seeds.uniforms("vanish", draw, client) < self.section.dropout:
            return None
        return float(self.seeds.uniforms("vanish after", draw, client))

    def _settle(self, reports: Sequence[Report]) -> None:
        trips = [r.trip for r in reports if r.trip]
        ends = [t.end_s for t in trips]
        answers = [r.status == "ok" for r in reports]
        goal = self.goal if self.section.over_selection > 1 else len(reports)
        done = settle(ends, answers, self._start, goal, self.section.deadline_s)
        for i in done.late:
            reports[i].status = "late"
        if len(done.kept) < self.section.min_replies:
            statuses = Counter(r.status for r in reports)
            for i in done.kept:
                reports[i].status = "void"
            log.warning(
                "a round changed nothing: %d of %d clients answered in time, and min_replies is %d "
                "(%s)",
                len(done.kept),
                len(reports),
                self.section.min_replies,
                ", ".join(f"{n} {status}" for status, n in statuses.most_common()),
            )
        finite = [end for end in ends if math.isfinite(end)]
        self._end = done.end_s if math.isfinite(done.end_s) else max(finite, default=self._start)
        if self.overlaps:
            took, self._uploading_s = overlapped_s(trips, self._uploading_s)
            self._end = self._start + took

    def _remember(self, server_round: int, reports: Sequence[Report]) -> None:
        """Let the selector learn, and keep the mean work as the prediction for the next round."""
        whole = [r for r in reports if r.status in ANSWERED]
        if whole:
            self._typical = mean_work([work_of(r, self.weight_bytes) for r in whole])
        self.selector.learn(server_round, [_outcome(r) for r in reports if r.trip], self.state)

    # -- the clock -----------------------------------------------------------------------------

    def close_round(self, server_round: int, reports: Sequence[Report]) -> dict[str, Any]:
        """Move the clock to the end of the round; what the round took, under run-folder keys."""
        if not self.leaves_out:
            self._settle(reports)
        self._remember(server_round, reports)
        self.now = self._end + self.section.server.round_s
        took, self._closed_at = self.now - self._closed_at, self.now
        worked = self._end - self._start
        kept = [self._busy_s(r.trip) for r in reports if r.trip and r.status == "ok"]
        return {
            "time/virtual_s": took,
            "time/virtual_s_cum": self.now,
            "time/client_wait_s": worked - math.fsum(kept) / len(kept) if kept else 0.0,
            **totals(reports),
        }

    def _busy_s(self, trip: Trip) -> float:
        """How long a round keeps a client; where rounds overlap, its radio works beside it."""
        return trip.compute_s + trip.wait_s if self.overlaps else trip.elapsed_s

    def participation(self) -> Callable[[int], float] | None:
        """Each client's share of rounds that it takes part in, where that is known."""
        process = self.section.availability
        if isinstance(process, Always):
            return lambda client: self.goal / self.num_clients
        if isinstance(process, Rated) and self.goal == self.num_clients:
            return lambda client: float(process.share(np.array([client]), self.context)[0])
        return None

    def checkpoint(self) -> dict[str, Any]:
        """Clock and memory, for a checkpoint."""
        typical = {name: getattr(self._typical, name) for name in Work.__dataclass_fields__}
        uploading = {"uploading_s": self._uploading_s}
        return {"now": self.now, "state": self.state, "typical": typical, **uploading}

    def restore(self, saved: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.now = self._closed_at = saved["now"]
        self.state, self._typical = saved["state"], Work(**saved["typical"])
        self._uploading_s = saved["uploading_s"]


LOST = ("oom", "dropped", "interrupted", "late", "void")
"""Statuses of clients that a round leaves out, beside failed ones."""


def totals(reports: Sequence[Report]) -> dict[str, Any]:
    """What clients spent and how many were left out, under run-folder keys."""
    lost = [r for r in reports if r.status not in ("ok", "failed")]
    return {
        "energy/joules": math.fsum(r.trip.energy_j for r in reports if r.trip),
        "energy/wasted_joules": math.fsum(r.trip.energy_j for r in lost if r.trip),
        "comm/wasted_bytes": sum(r.up_bytes + r.down_bytes for r in lost),
        "work/flops": sum(r.spent.flops for r in reports),
        "mem/device_peak_bytes": max((r.spent.memory_bytes for r in reports), default=0),
        **{f"clients/{s}": sum(r.status == s for r in reports) for s in LOST},
    }


def work_of(report: Report, weight_bytes: int) -> Work:
    """What a client was asked to do."""
    spent = report.spent
    return Work(
        down_bytes=report.down_bytes,
        up_bytes=report.up_bytes,
        flops=spent.flops,
        batches=spent.batches,
        examples=spent.examples or (report.num_examples if report.status == "ok" else 0),
        weight_bytes=weight_bytes,
    )


def mean_work(works: Sequence[Work]) -> Work:
    """The mean of each figure, rounded down."""
    sums = {name: sum(getattr(w, name) for w in works) for name in Work.__dataclass_fields__}
    return Work(**{name: int(total / len(works)) for name, total in sums.items()})


def columns(report: Report) -> dict[str, Any]:
    """What the world adds to a client's line."""
    if report.trip is None:
        return {}
    trip, spent = report.trip, report.spent
    return {
        "device": report.device,
        "time/virtual_s": trip.elapsed_s if math.isfinite(trip.elapsed_s) else None,
        "time/end_s": trip.end_s if math.isfinite(trip.end_s) else None,
        "time/download_s": trip.download_s,
        "time/compute_s": trip.compute_s,
        "time/upload_s": trip.upload_s,
        "energy/joules": trip.energy_j,
        "work/flops": spent.flops,
        "mem/peak_bytes": spent.memory_bytes,
        **({"stopped_in": trip.stopped} if trip.stopped else {}),
        **({"rows_at_once": report.rows_at_once} if report.rows_at_once else {}),
    }


def _outcome(report: Report) -> Outcome:
    assert report.trip is not None
    return Outcome(
        client=report.client,
        seconds=report.trip.elapsed_s,
        num_examples=report.num_examples,
        loss=report.metrics.get("train_loss"),
        answered=report.status in ANSWERED,
    )


def _label_counts(recipe: Recipe, process: Rated) -> np.ndarray:
    """Rows of each label by client."""
    rows = partition.bind(recipe.scenario, recipe.ownership).rows.train
    if process.label_column not in rows.column_names:
        raise DataError(
            f"the data has no column '{process.label_column}'",
            key=("devices", "availability", "label_column"),
            allowed=f"Columns: {', '.join(rows.column_names)}",
        )
    _, labels = np.unique(np.asarray(rows[process.label_column]), return_inverse=True)
    owned = recipe.ownership.train
    size = int(labels.max()) + 1
    return np.array([np.bincount(labels[owned[c]], minlength=size) for c in range(len(owned))])


def _as_far_as(parts: dict[str, int], count: int) -> dict[str, int]:
    """The parts of a message; of one that was cut off only how much of it travelled."""
    if sum(parts.values()) == count:
        return parts
    return {"partial": count} if count else {}
