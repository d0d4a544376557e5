"""Asynchronous runs played ahead: the event loop, with predictions in place of training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
from flwr.app import ArrayRecord, Error, Message, MetricRecord, RecordDict

from fedsim.arrays import Arrays
from fedsim.assembly import build_strategy
from fedsim.cost import Spent
from fedsim.engine.blocks import Block, BlockResult, Broadcast, Report
from fedsim.engine.calls import blocks_of
from fedsim.engine.event_loop import EventLoop
from fedsim.engine.grid import WorkerGrid
from fedsim.engine.states import ClientStates
from fedsim.engine.timetable import WorldTimetable
from fedsim.engine.world import World, totals
from fedsim.event_strategy import LOCAL_STEPS
from fedsim.probe import Probe
from fedsim.strategy import DELTA, METRICS, NUM_EXAMPLES, to_record


class PlayedGrid:
    """Answers with what a probe predicts; the weights never move.

    Args:
        probe: Predicts.
    """

    def __init__(self, probe: Probe) -> None:
        self.probe, self.states, self.reports = probe, ClientStates(), list[Report]()
        self.weights: Arrays = probe.grid.facts["arrays"]
        self.downlink = probe.grid.downlink

    def encode(
        self, records: Mapping[str, ArrayRecord], number: int
    ) -> tuple[Broadcast, Arrays, Arrays | None]:
        """As many bytes as the probed clients received."""
        nothing = np.zeros(0, np.uint8)
        return Broadcast("played", nothing, {"values": self.probe.down_bytes}), self.weights, None

    def share(self, value: Any) -> Any:
        """The value itself."""
        return value

    def residuals_of(self, clients: Sequence[int]) -> tuple[Arrays | None, ...]:
        """Nothing: what codecs remember moves no prediction."""
        return ()

    def map(self, method: str, calls: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        """Nothing for a rehearsal, a prediction for training."""
        for (block,) in map(blocks_of, calls):
            report = self.probe.report(block.clients[0])
            yield Spent() if method == "rehearse" else [BlockResult([report], [None])]

    def answer(
        self, block: Block, result: BlockResult, broadcast: Broadcast, sent: Arrays
    ) -> Message:
        """A reply that moves nothing, or an error where the world lost it."""
        (report,) = result.reports
        self.reports.append(report)
        message = Message(RecordDict({}), dst_node_id=block.clients[0], message_type="train")
        if report.status != "ok":
            return Message(Error(code=2, reason=report.status), reply_to=message)
        delta = to_record({name: np.zeros_like(x) for name, x in sent.items()})
        numbers: dict[str, Any] = {
            NUM_EXAMPLES: report.num_examples,
            LOCAL_STEPS: max(1, report.spent.batches),
        }
        return Message(RecordDict({DELTA: delta, METRICS: MetricRecord(numbers)}), reply_to=message)


def play_updates(
    probe: Probe, world: World, count: int
) -> tuple[list[dict[str, Any]], list[list[Report]]]:
    """Lines and clients' reports of the first updates of an asynchronous run."""
    strategy: Any = build_strategy(probe.grid.recipe.scenario, world.num_clients)
    grid = PlayedGrid(probe)
    strategy.begin(to_record(grid.weights))
    timetable = WorldTimetable(world, cast(WorkerGrid, grid), strategy.concurrency)
    loop = EventLoop(strategy, cast(WorkerGrid, grid), timetable)
    records, reports_of = [], []
    for _ in range(count):
        loop.until_update(1.0)
        reports, grid.reports = grid.reports, []
        done = {"clients/completed": sum(r.status == "ok" for r in reports)}
        records.append(done | loop.close_round() | totals(reports))
        reports_of.append(reports)
    return records, reports_of
