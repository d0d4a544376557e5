"""Virtual time for asynchronous runs: who is there, how long a flight takes, what it costs.

The work that decides a flight's time is measured while it is done. Before, clients rehearse: they
draw the batches that they are going to use, and the trip with that work and no upload is a lower
bound of the true one, often a close one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fedsim.availability import Always, Ids, Slotted
from fedsim.engine.blocks import Report
from fedsim.engine.flights import Flight, Idle
from fedsim.engine.grid import WorkerGrid
from fedsim.engine.world import WAIT_S, World
from fedsim.selection import Pool


class WorldTimetable:
    """The timetable of a world.

    Args:
        world: Devices, presence and links.
        grid: Its workers rehearse.
        concurrency: Clients at work at any time; they share the server's bandwidth.
    """

    def __init__(self, world: World, grid: WorkerGrid, concurrency: int) -> None:
        self.world, self.grid, self.concurrency = world, grid, concurrency
        process = world.section.availability
        slot_s = process.slot_s if isinstance(process, Slotted) else None
        always = isinstance(process, Always)
        self.look_again_s = math.inf if always else slot_s or WAIT_S

    def idle(self, now: float, busy: set[int], number: int) -> Sequence[int]:
        """All that are not busy; where clients come and go, a sample of those who are there."""
        world, process = self.world, self.world.section.availability
        if isinstance(process, Always):
            return Idle(world.num_clients, busy)
        others = np.fromiter(busy, np.int64, len(busy))

        def free(clients: Ids) -> Any:
            there = process.available(clients, now, world.context)
            return there & ~np.isin(clients, others)

        pool = Pool(
            num_clients=world.num_clients,
            server_round=1,
            available=free,
            seconds=lambda client: 0.0,
            stays=lambda clients, seconds: np.ones(len(clients), dtype=np.bool_),
            generator=world.seeds.numpy("idle", number, int(now)),
        )
        return sorted(pool.sample(self.concurrency))

    def set_bounds(self, flights: Sequence[Flight], down_bytes: int) -> None:
        """The trip with the rehearsed work and an empty answer."""
        blocks = [(flight.block(self.budgets(flight)),) for flight in flights]
        for flight, spent in zip(flights, self.grid.map("rehearse", blocks), strict=True):
            report = Report(flight.client, down_bytes=down_bytes, spent=spent)
            flight.bound_s = self._travel(flight, report)

    def arrive(self, flight: Flight, report: Report) -> float:
        """The trip with the measured work; where it was cut short, the answer is lost.

        A client whose code failed is missed when its work would have been done.
        """
        end_s = self._travel(flight, report)
        return max(end_s, flight.bound_s) if report.status == "failed" else end_s

    def _travel(self, flight: Flight, report: Report) -> float:
        self.world.travel(
            report,
            flight.version + 1,
            start_s=flight.start_s,
            concurrent=self.concurrency,
            draw=flight.number,
        )
        assert report.trip is not None
        return report.trip.end_s

    def budgets(self, flight: Flight) -> tuple[int, ...]:
        """Memory of the flight's device."""
        return self.world.budgets((flight.client,), flight.version + 1)
