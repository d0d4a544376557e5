"""A short probe: a few clients trained for real, from which the work of all is predicted."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard, cast

import numpy as np
from flwr.app import ConfigRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedsim.arrays import Arrays
from fedsim.assembly import build_strategy, connect
from fedsim.cost import Spent
from fedsim.engine.blocks import Block, Broadcast, Report
from fedsim.engine.inline import InlineGrid
from fedsim.engine.world import World
from fedsim.errors import ClientError
from fedsim.strategy import PACKED, DeltaStrategy, to_arrays, to_record

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
        broadcasts = self._broadcasts(spread(self.grid.num_clients, MOST_PROBES))
        for client, (broadcast, weights) in broadcasts.items():
            config = {"server-round": 1}
            block = Block(1, (client,), (None,), config, reduce=False, budgets=(2**62,))
            (result,) = self.grid.worker.work([block], "train", broadcast, weights)
            (report,) = result.reports
            self.grid.downlink.charge(report, broadcast)
            reports.append(report)
            if time.perf_counter() - start > PROBE_S and len(reports) > 1:
                break
        return reports

    def _broadcasts(self, clients: Sequence[int]) -> dict[int, tuple[Broadcast, Arrays | None]]:
        """What each client receives in round 1, and the weights beside what is not weights."""
        strategy = build_strategy(self.grid.recipe.scenario, self.grid.num_clients)
        connect(self.grid, strategy, self.world)
        if not _packs(strategy):
            return dict.fromkeys(clients, (self.grid.broadcast(), None))
        strategy.fraction_train = 1.0
        record, asked = to_record(self.grid.facts["arrays"]), _Asked(clients)
        messages = strategy.configure_train(1, record, ConfigRecord(), cast(Grid, asked))
        weights = self.grid.facts["arrays"] if strategy.shares_weights else None
        vectors = {
            m.metadata.dst_node_id: to_arrays(m.content.array_records[PACKED]) for m in messages
        }
        return {c: (self.grid.downlink.pack(v), weights) for c, v in vectors.items()}

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


def _packs(strategy: Strategy) -> TypeGuard[DeltaStrategy]:
    """Whether it sends something else than weights."""
    return isinstance(strategy, DeltaStrategy) and (
        type(strategy).broadcasts is not DeltaStrategy.broadcasts
    )


@dataclass(frozen=True)
class _Asked:
    """A grid on which exactly these clients are there."""

    clients: Sequence[int]

    def get_node_ids(self) -> Sequence[int]:
        """All of them."""
        return self.clients


def spread(num_clients: int, count: int) -> list[int]:
    """Up to ``count`` clients, evenly spread over their numbers."""
    return sorted({int(c) for c in np.linspace(0, num_clients - 1, min(count, num_clients))})
