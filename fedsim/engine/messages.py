"""Flower's messages on this side of the grid: what groups them, what they are answered with.

``MessageGrid`` has what Flower asks of a ``Grid`` beside sending and receiving.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from flwr.app import ArrayRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedsim.arrays import Arrays
from fedsim.engine.blocks import Block, BlockResult, Broadcast, Report
from fedsim.errors import FedsimError
from fedsim.strategy import METRICS, NUM_EXAMPLES, WEIGHT, to_record

log = logging.getLogger("fedsim.clients")


@dataclass
class Group:
    """Messages of one round that carry the same content."""

    kind: str
    config: Mapping[str, Any]
    broadcast: Broadcast
    sent: Arrays
    weights: ArrayRecord | None = None
    messages: dict[int, Message] = field(default_factory=dict)


Answered = tuple[Group, Block, BlockResult]


class MessageGrid(Grid):
    """The methods of Flower's grid that need nothing but ``send_and_receive``."""

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message as Flower makes it."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Work on messages at once; ``pull_messages`` returns the replies."""
        replies = list(self.send_and_receive(messages))
        first = len(self._pushed)
        self._pushed.extend(replies)
        return [str(first + i) for i in range(len(replies))]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies to pushed messages."""
        return [self._pushed[int(i)] for i in message_ids]

    def set_run(self, run: Any) -> None:
        """Flower's bookkeeping; unused here."""

    @property
    def run(self) -> Any:
        """Flower's bookkeeping; unused here."""
        return None

    # -- single clients, for asynchronous runs -------------------------------------------------

    @property
    def _pushed(self) -> list[Message]:
        return cast(list[Message], self.__dict__.setdefault("_pushed_messages", []))


def reply(
    message: Message,
    arrays: tuple[str, Arrays] | None,
    reports: list[Report],
    weight: float = 0.0,
) -> Message:
    """One reply for one client, or for several as one heavier client."""
    total = sum(r.num_examples for r in reports)
    metrics: dict[str, Any] = {NUM_EXAMPLES: total}
    if weight:
        metrics[WEIGHT] = weight
    for name in reports[0].metrics:
        if any(name not in r.metrics for r in reports):
            continue  # a mean over some of the clients would pass for one over all of them
        metrics[name] = sum(r.metrics[name] * r.num_examples for r in reports) / total
    content = RecordDict({METRICS: MetricRecord(metrics)})
    if arrays:
        content[arrays[0]] = to_record(arrays[1], copy=False)
    return Message(content, reply_to=message)


def alike(replies: list[Message]) -> list[Message]:
    """Replies with the metrics that all of them hold: stock strategies take no others."""
    answers = [r.content.metric_records[METRICS] for r in replies if not r.has_error()]
    common = set.intersection(*map(set, answers)) if answers else set()
    for record in answers:
        for name in set(record) - common:
            del record[name]
    return replies


def own_weights(messages: Iterable[Message]) -> tuple[float, ...]:
    """The weights that the strategy gave to the clients of a block, if it gave some."""
    records = [message.content.get(WEIGHT) for message in messages]
    return tuple(float(r[WEIGHT]) for r in records if r)  # type: ignore[arg-type]


def bind_task() -> None:
    """Flower's messages read a process-wide identity, which its own runtimes set; so do we."""
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


def failure(message: Message, reason: str) -> Message:
    """What the strategy gets in place of a client's answer."""
    return Message(Error(code=2, reason=reason), reply_to=message)


def reject(report: Report, server_round: int, problem: FedsimError) -> str:
    """Count a client whose payload cannot be used as failed; returns what is wrong with it."""
    report.status = "failed"
    report.error = f"client {report.client}, round {server_round}, decode: {problem}"
    log.warning(report.error)
    return report.error
