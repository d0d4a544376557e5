"""A short probe: a few clients trained for real, from which the work of all is predicted."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from fedsim.cost import Spent
from fedsim.engine.blocks import Block, Report
from fedsim.engine.inline import InlineGrid
from fedsim.engine.world import World
from fedsim.errors import ClientError

PROBE_S = 10.0
MOST_PROBES = 24


class Probe:
    """Work measured on a few clients, and its prediction for any other.

    Args:
        grid: A grid in this process, entered.
        world: Devices of the scenario.
    """

    def __init__(self, grid: InlineGrid, world: World) -> None:
        self.grid, self.world = grid, world
        self.split = grid.worker.task.split
        self.reports = self._train()
        good = [r for r in self.reports if r.status == "ok"]
        if not good:
            raise ClientError(f"every probed client failed; the first: {self.reports[0].error}")
        self.down_bytes = good[0].down_bytes
        self.up_bytes = sum(r.up_bytes for r in good) / len(good)
        rows = sum(r.spent.examples or r.num_examples for r in good)
        self.flops_per_row = sum(r.spent.flops for r in good) / rows
        self.wall_per_row = self._wall(good)
        ratios = {round(r.spent.examples / r.num_examples, 9) for r in good}
        self.epochs = ratios.pop() if len(ratios) == 1 else None
        self.steps = round(sum(r.spent.batches for r in good) / len(good))
        self.rows = rows / len(good)
        self.memory_bytes = max(r.spent.memory_bytes for r in good)

    def _train(self) -> list[Report]:
        """Train clients until the time is up; memory is as large as it takes."""
        start, reports = time.perf_counter(), []
        broadcast = self.grid.broadcast()
        for client in spread(self.grid.num_clients, MOST_PROBES):
            config = {"server-round": 1}
            block = Block(1, (client,), (None,), config, reduce=False, budgets=(2**62,))
            reports += self.grid.worker.train(block, broadcast).reports
            if time.perf_counter() - start > PROBE_S and len(reports) > 1:
                break
        return reports

    def _wall(self, good: Sequence[Report]) -> float:
        """Seconds of this machine for a row; the first clients are slower, the median is not."""
        return float(np.median([r.wall_s / (r.spent.examples or r.num_examples) for r in good]))

    def report(self, client: int) -> Report:
        """What a client's round will have cost, if it has the memory."""
        num_rows = self.split.num_examples(client)
        batch_size = getattr(self.grid.worker.method, "batch_size", None) or num_rows
        if self.epochs is not None:
            examples = round(self.epochs * num_rows)
            batches = round(self.epochs * -(-num_rows // batch_size)) if self.epochs else 0
        else:
            examples, batches = round(self.rows), self.steps
        flops = round(self.flops_per_row * (examples or num_rows))
        return Report(
            client,
            num_examples=num_rows,
            up_bytes=round(self.up_bytes),
            down_bytes=self.down_bytes,
            spent=Spent(flops, batches, examples, self.memory_bytes),
        )

    def rows_at_once(self, client: int, budget: int) -> int:
        """Rows that a device of so much memory can hold of the client's batches."""
        meter = self.grid.worker.meter
        assert meter is not None
        if meter.method is None:
            return 1
        shrinks = self.world.section.out_of_memory == "accumulate" and meter.method.accumulates
        return meter.rows_that_fit(client, budget, shrinks)[0]


def spread(num_clients: int, count: int) -> list[int]:
    """Up to ``count`` clients, evenly spread over their numbers."""
    return sorted({int(c) for c in np.linspace(0, num_clients - 1, min(count, num_clients))})
