"""Server updates of an asynchronous run, one after the other, on virtual time.

    until the server updates:
        nobody arrives at this instant any more -> the strategy says who starts now
        the next flight lands                   -> the clock moves, the strategy receives

One call of ``until_update`` is what a round is elsewhere. Answers arrive strictly in the order of
virtual time, by number where times are equal; real work runs ahead on all workers.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord

from fedsim.arrays import Arrays
from fedsim.engine.blocks import Block, Broadcast, Report
from fedsim.engine.flights import Flight, Flights, Versions
from fedsim.engine.grid import WorkerGrid
from fedsim.errors import RunError
from fedsim.event_strategy import EventStrategy, with_base
from fedsim.strategy import NUM_EXAMPLES, WeightedMetrics, to_arrays, to_record

log = logging.getLogger("fedsim.clients")
LONGEST_WAIT_S = 30 * 86400.0
FEWEST_LANDINGS = 20
"""Failures are judged over at least so many of the latest landings."""
MOST_LOST = 1000
"""So many landings in a row, or ten for each client at work if that is more, may bring no answer;
where nine in ten clients drop out, that many never do."""


class Timetable(Protocol):
    """Virtual time: who is there, and how long a flight takes."""

    look_again_s: float
    """While too few clients are available, the server looks again after this time."""

    def idle(self, now: float, busy: set[int], number: int) -> Sequence[int]:
        """Clients that are available and not busy; of very many, a sample for this start."""

    def set_bounds(self, flights: Sequence[Flight], down_bytes: int) -> None:
        """Set ``bound_s`` of flights before their work is done."""

    def budgets(self, flight: Flight) -> tuple[int, ...]:
        """Memory of the flight's device, if it counts."""

    def arrive(self, flight: Flight, report: Report) -> float:
        """When a flight arrives whose work is done; a report whose answer is lost is marked."""


class _Version:
    """One model of the server, as it is sent."""

    def __init__(self, grid: WorkerGrid, records: Mapping[str, ArrayRecord], number: int) -> None:
        self.records = records
        self.broadcast: Broadcast
        self.broadcast, self.sent, self._beside = grid.encode(records, number)

    def shared(self, grid: WorkerGrid) -> list[Any]:
        """What workers need of it, where all can read it."""
        return [grid.share(x) for x in (self.broadcast, self._beside) if x is not None]


class EventLoop:
    """Carries an ``EventStrategy`` from update to update.

    Args:
        strategy: Says who starts, and takes answers.
        grid: Does the work.
        timetable: Knows virtual time.

    Attributes:
        now: Virtual time in seconds.
        staleness: Of the answers since the last update.
    """

    def __init__(self, strategy: EventStrategy, grid: WorkerGrid, timetable: Timetable) -> None:
        self.strategy, self.grid, self.timetable = strategy, grid, timetable
        self.flights = Flights(self._work)
        self.versions = Versions()
        self.now = self._closed_at = 0.0
        self.version = self._started = 0
        self.staleness: list[int] = []
        self._failures: deque[bool] = deque(maxlen=FEWEST_LANDINGS)
        self._lost: Counter[str] = Counter()  # statuses of landings since the last answer

    def until_update(self, most_failures: float) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Go on to the next server update; returns the new weights and the clients' mean metrics.

        Args:
            most_failures: With a larger share of failures among the latest landings, it returns
                without weights.

        Raises:
            RunError: Nobody is at work and nobody will be, or nobody's answer arrives.
        """
        metrics, self.staleness = WeightedMetrics(), []
        while self.failed_fraction <= most_failures:
            if self.flights.next_end(self.now) > self.now:
                self._dispatch()
            if self._looks_again():
                continue
            if self.flights.next_end() == math.inf:
                raise RunError(
                    f"at {self.now:.0f} s of virtual time nobody is at work, and nobody starts",
                    hint="Look at devices.availability, and at the strategy's dispatch",
                )
            flight = self.flights.land()
            self.now = flight.end_s
            if (arrays := self._receive(flight, metrics)) is not None:
                self.version += 1
                return arrays, metrics.result()
            self._check_lost()
        return None, None

    @property
    def failed_fraction(self) -> float:
        """Share of failures among the latest landings; 0 while they are few."""
        enough = len(self._failures) == self._failures.maxlen
        return sum(self._failures) / len(self._failures) if enough else 0.0

    def close_round(self) -> dict[str, Any]:
        """What the update took, under run-folder keys."""
        took, self._closed_at = self.now - self._closed_at, self.now
        ages = self.staleness
        return {
            "agg/staleness": float(np.mean(ages)) if ages else 0.0,
            "agg/staleness_max": max(ages, default=0),
            "agg/in_flight": len(self.flights),
            "time/virtual_s": took,
            "time/virtual_s_cum": self.now,
        }

    # -- who starts ----------------------------------------------------------------------------

    def _dispatch(self) -> None:
        if len(self.flights) >= self.strategy.concurrency:
            return
        idle = self.timetable.idle(self.now, self.flights.clients, self._started)
        messages = list(self.strategy.dispatch(self.now, idle))
        if not messages:
            return
        records = dict(messages[0].content.array_records)
        flights = [self._flight(message, records) for message in messages]
        self.timetable.set_bounds(flights, self.versions[self.version].broadcast.num_bytes)
        for flight in flights:
            self.flights.start(flight)

    def _flight(self, message: Message, records: Mapping[str, ArrayRecord]) -> Flight:
        self.versions.take(self.version, partial(_Version, self.grid, records, self.version))
        self._started += 1
        return Flight(
            number=self._started,
            client=message.metadata.dst_node_id,
            version=self.version,
            start_s=self.now,
            bound_s=self.now,
            config=dict(next(iter(message.content.config_records.values()), {})),
        )

    def _looks_again(self) -> bool:
        """Whether the clock moved to look for clients again, before anybody arrives."""
        later = self.now + self.timetable.look_again_s
        missing = len(self.flights) < self.strategy.concurrency
        if not missing or math.isinf(later) or self.flights.next_end(later) <= later:
            return False
        self.now = later
        return self.now - self._closed_at < LONGEST_WAIT_S

    # -- who works -----------------------------------------------------------------------------

    def _work(self, flights: Sequence[Flight]) -> None:
        handles = {v: self.versions[v].shared(self.grid) for v in _versions(flights)}
        calls = [([self._block(flight)], "train", *handles[flight.version]) for flight in flights]
        for flight, (result,) in zip(flights, self.grid.map("work", calls), strict=True):
            flight.result = result
            self.grid.downlink.charge(result.reports[0], self.versions[flight.version].broadcast)
            flight.end_s = self.timetable.arrive(flight, result.reports[0])

    def _block(self, flight: Flight) -> Block:
        residuals = self.grid.residuals_of([flight.client])
        return flight.block(self.timetable.budgets(flight), residuals)

    # -- who arrives ---------------------------------------------------------------------------

    def _receive(self, flight: Flight, metrics: WeightedMetrics) -> ArrayRecord | None:
        assert flight.result is not None
        staleness = self.version - flight.version
        self.staleness.append(staleness)
        (report,) = flight.result.reports
        version = self.versions[flight.version]
        block = flight.block(residuals=self.grid.residuals_of([flight.client]))  # as at its start
        reply = self.grid.answer(block, flight.result, version.broadcast, version.sent)
        self.versions.release(flight.version)
        self._failures.append(report.status == "failed")
        report.metrics["staleness"] = staleness
        if reply.has_error():
            self._lost[report.status] += 1
        else:
            self._lost.clear()
            numbers = next(iter(reply.content.metric_records.values()))
            metrics.update(numbers, float(numbers[NUM_EXAMPLES]))  # type: ignore[arg-type]
        return self.strategy.receive(with_base(reply, version.sent), staleness)

    def _check_lost(self) -> None:
        count = self._lost.total()
        if count >= max(MOST_LOST, 10 * self.strategy.concurrency):
            ended = ", ".join(f"{n} {status}" for status, n in self._lost.most_common())
            raise RunError(
                f"at {self.now:.0f} s of virtual time the last {count} clients at work gave no "
                f"answer: {ended}",
                hint="Where they are out of memory (oom), take a smaller model, smaller batches or "
                "other devices: `fedsim plan` says which ones fit. Otherwise look at "
                "devices.dropout and devices.availability",
            )

    # -- checkpoints ---------------------------------------------------------------------------

    def checkpoint(self) -> dict[str, Any]:
        """Clock, flights in the air and the versions that they started from."""
        return {
            "now": self.now,
            "version": self.version,
            "started": self._started,
            "failures": list(self._failures),
            "flights": [flight.saved() for flight in self.flights],
            "versions": {
                n: {name: to_arrays(record) for name, record in version.records.items()}
                for n, version in self.versions.items().items()
            },
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; what was at work is worked on again."""
        self.now = self._closed_at = saved["now"]
        self.version, self._started = saved["version"], saved["started"]
        self._failures.extend(saved["failures"])
        versions: dict[int, dict[str, Arrays]] = saved["versions"]
        for values in saved["flights"]:
            flight = Flight(**values)
            records = {n: to_record(arrays) for n, arrays in versions[flight.version].items()}
            make = partial(_Version, self.grid, records, flight.version)
            self.versions.take(flight.version, make)
            self.flights.start(flight)


def _versions(flights: Sequence[Flight]) -> list[int]:
    return sorted({flight.version for flight in flights})
