"""The contract of a strategy without rounds: the server acts whenever a client answers.

``dispatch`` says who starts now; ``receive`` takes one answer, and returns new weights when that
made the server update. A subclass writes ``arrive(push, weights, state)``: what the model moves by,
or None while it only collects. The engine keeps versions of the model, virtual time and the order
of answers. On a plain Flower grid ``start`` does the same in real time, and called round by round
such a strategy takes every answer of the round as fresh.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from fedsim.arrays import Arrays, add, subtract
from fedsim.errors import PluginError, RunError
from fedsim.strategy import (
    CONFIG,
    DELTA,
    NUM_EXAMPLES,
    DeltaStrategy,
    State,
    WeightedMetrics,
    new_weights,
    to_arrays,
    to_messages,
    to_record,
)

RECEIVED = "received"
"""Record of a reply with the weights that its client had started from."""
LOCAL_STEPS = "local_steps"
"""Metric of a reply: batches that the client trained on."""
POLL_S = 0.05


@dataclass(frozen=True)
class Push:
    """One client's answer.

    Attributes:
        client: Who sent it.
        delta: Its weights minus those that it had started from.
        received: The weights that it had started from.
        staleness: Server updates since then.
        num_examples: Its training rows.
        metrics: What else it said.
    """

    client: int
    delta: Arrays
    received: Arrays
    staleness: int
    num_examples: float
    metrics: dict[str, float]

    @property
    def local_steps(self) -> float:
        """Batches that the client trained on.

        Raises:
            PluginError: The client's method does not say.
        """
        if LOCAL_STEPS not in self.metrics:
            raise PluginError(
                f"the strategy divides by the clients' '{LOCAL_STEPS}', which they do not report",
                key=("client",),
                hint="Clients built on `sgd` do; others give client.update(local_steps=...)",
            )
        return self.metrics[LOCAL_STEPS]


class EventStrategy(DeltaStrategy):
    """A strategy that is told of every answer as it comes.

    Class attributes that subclasses may offer as options: ``max_staleness``, the oldest answer that
    is used (none: all are).
    """

    additive: ClassVar[bool] = False
    by_events: ClassVar[bool] = True
    max_staleness: int | None = None
    concurrency = 0
    """Clients at work at any time (0: the share ``fraction_train``); set by the engine from what a
    scenario calls ``clients_per_round``."""
    in_flight = 0
    """Clients that have started and not answered."""
    version = 0
    """Server updates so far."""
    dispatched = 0
    """Starts so far."""

    @abstractmethod
    def arrive(self, push: Push, weights: Arrays, state: State) -> Arrays | None:
        """What the model moves by because of this answer, or None for no update yet.

        Args:
            push: The answer.
            weights: Current global weights.
            state: This strategy's state, where answers may be collected.
        """

    def server_update(self, weights: Arrays, delta: Arrays, state: State) -> Arrays:
        """New global weights: one step by what ``arrive`` returned."""
        return add(weights, delta)

    def begin(self, arrays: ArrayRecord) -> None:
        """Weights to start from."""
        self._weights = to_arrays(arrays)

    def dispatch(self, now: float, idle: Sequence[int]) -> Iterable[Message]:
        """Messages to those who start now: as many as are missing, uniformly from the idle ones.

        Args:
            now: Virtual time in seconds.
            idle: Clients that are available and not at work.
        """
        self.num_clients = self.num_clients or len(idle) + self.in_flight
        most = self.concurrency or max(1, round(self.fraction_train * self.num_clients))
        wanted = min(most - self.in_flight, len(idle))
        if wanted <= 0:
            return []
        draw = self.seeds.numpy("dispatch", self.dispatched)
        nodes = [idle[int(i)] for i in draw.choice(len(idle), wanted, replace=False)]
        self.in_flight += wanted
        self.dispatched += wanted
        number, arrays, config = self.version + 1, to_record(self._weights), ConfigRecord()
        packed = self._packed(number, nodes, arrays)
        return to_messages(nodes, number, arrays, config, MessageType.TRAIN, packed=packed)

    def receive(self, reply: Message, staleness: int) -> ArrayRecord | None:
        """Take one answer; returns the new weights when it made the server update.

        Args:
            reply: Holds ``delta`` and ``received``, or an error.
            staleness: Server updates between the client's start and its answer.
        """
        self.in_flight -= 1
        too_old = self.max_staleness is not None and staleness > self.max_staleness
        if reply.has_error() or too_old:
            return None
        push = _push(reply, staleness)
        step = self.arrive(push, self._weights, self.state)
        if step is None:
            return None
        self._note_mean(step)
        updated = self.server_update(self._weights, step, self.state)
        self._weights = new_weights(self, updated, self._weights)
        self.version += 1
        return to_record(self._weights)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """A round whose answers are all fresh, one after the other."""
        metrics, received = WeightedMetrics(), self._weights
        for reply in replies:
            self.in_flight += 1
            if not reply.has_error():
                numbers = next(iter(reply.content.metric_records.values()))
                metrics.update(numbers, float(numbers[NUM_EXAMPLES]))  # type: ignore[arg-type]
                with_base(reply, received)
            self.receive(reply, 0)
        if not metrics.weight:
            return None, None
        return to_record(self._weights), metrics.result()

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Any = None,
    ) -> Result:
        """Run on any Flower grid, in real time, until the server has updated ``num_rounds`` times.

        ``evaluate_fn`` is called after every update; clients are not asked to evaluate.

        Raises:
            RunError: No client answers for ``timeout`` seconds.
        """
        self.begin(initial_arrays)
        result = Result(arrays=initial_arrays)
        flights: dict[int, tuple[str, int, Arrays]] = {}  # by node: message, version, weights
        begun = last = time.monotonic()
        while self.version < num_rounds:
            idle = [node for node in grid.get_node_ids() if node not in flights]
            messages = list(self.dispatch(time.monotonic() - begun, idle))
            for message in messages:
                message.content.config_records[CONFIG].update(train_config or {})
            for name, message in zip(grid.push_messages(messages), messages, strict=True):
                flights[message.metadata.dst_node_id] = (name, self.version, self._weights)
            replies = list(grid.pull_messages([name for name, *_ in flights.values()]))
            for reply in replies:
                last = time.monotonic()
                _, version, received = flights.pop(reply.metadata.src_node_id)
                arrays = self.receive(with_base(reply, received), self.version - version)
                if arrays is not None:
                    result.arrays = arrays
                    _evaluate(evaluate_fn, self.version, arrays, result)
                if self.version == num_rounds:
                    break
            if not replies:
                _wait(last, timeout)
        return result


def with_base(reply: Message, received: Arrays) -> Message:
    """The reply with the weights that its client had started from."""
    if not reply.has_error():
        reply.content[RECEIVED] = to_record(received)
    return reply


def _push(reply: Message, staleness: int) -> Push:
    records = dict(reply.content.array_records)
    received = to_arrays(records.pop(RECEIVED))
    own = to_arrays(next(iter(records.values())))
    numbers = next(iter(reply.content.metric_records.values()))
    metrics = {k: float(v) for k, v in numbers.items() if not isinstance(v, list)}
    return Push(
        client=reply.metadata.src_node_id,
        delta=own if DELTA in records else subtract(own, received),
        received=received,
        staleness=staleness,
        num_examples=metrics.pop(NUM_EXAMPLES),
        metrics=metrics,
    )


def _evaluate(function: Any, version: int, arrays: ArrayRecord, result: Result) -> None:
    scores = function(version, arrays) if function else None
    if scores is not None:
        result.evaluate_metrics_serverapp[version] = scores


def _wait(last: float, timeout: float) -> None:
    if time.monotonic() - last > timeout:
        raise RunError(f"no client answered for {timeout:g} seconds")
    time.sleep(POLL_S)
