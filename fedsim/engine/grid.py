"""Flower's ``Grid`` over fedsim's workers: messages in, blocks out, counted, decoded replies back.

``WorkerGrid`` holds everything but execution. A subclass says how a value is shared with workers
and how calls are mapped over them: in this process (``InlineGrid``) or in Ray actors (``RayGrid``).
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedsim import registry, wire
from fedsim.arrays import Arrays, add, conform
from fedsim.codec import Payload
from fedsim.engine.blocks import Block, BlockResult, Broadcast, Report, cut
from fedsim.engine.states import ClientStates
from fedsim.engine.worker import Codecs, Recipe, build_codecs
from fedsim.strategy import ARRAYS, DELTA, METRICS, NUM_EXAMPLES, PACKED, to_arrays, to_record
from fedsim.task import merge_totals

log = logging.getLogger("fedsim.clients")
TEST_SHARD_ROWS = 256
"""The global test set is tested in fixed shards of about this many rows."""


@dataclass
class _Group:
    """Messages of one round that carry the same content."""

    kind: str
    config: Mapping[str, Any]
    broadcast: Broadcast
    received: Arrays
    weights: ArrayRecord | None = None
    messages: dict[int, Message] = field(default_factory=dict)


class WorkerGrid(Grid):
    """A Flower grid whose nodes are the clients 0 .. num_clients - 1.

    Args:
        recipe: What each worker builds.
        on_reply: Called with the number of clients whenever a block has answered.
        states: Where clients' private states are kept.

    Attributes:
        reduce: Let a block answer as one heavier client (for additive strategies).
        deltas: Hand deltas to the strategy; otherwise received weights plus delta.
        reports: What happened to each client since ``take_reports`` was last called.
        peak_bytes: Largest resident memory of a worker so far.
    """

    reduce = False
    deltas = False

    def __init__(
        self,
        recipe: Recipe,
        on_reply: Callable[[int], None] = lambda n: None,
        states: ClientStates | None = None,
    ) -> None:
        _bind_task()
        self.recipe = recipe
        self.codecs: Codecs = build_codecs(recipe.scenario.codec)
        method = registry.find("clients", recipe.scenario.client.name)
        self._packed = wire.travels_packed(method)
        self.on_reply = on_reply
        self.num_clients = len(recipe.ownership.train)
        self.reports: list[Report] = []
        self.peak_bytes = 0
        self.facts: dict[str, Any] = {}
        self.states = states or ClientStates()
        self._retried = 0
        self._broadcasts = 0

    # -- what a backend provides ---------------------------------------------------------------

    @abstractmethod
    def share(self, value: Any) -> Any:
        """Make a value available to all workers; returns a handle to pass to ``map``."""

    @abstractmethod
    def map(self, method: str, calls: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        """Call a worker method with each tuple of arguments; yields results in order."""

    @abstractmethod
    def __enter__(self) -> Self:
        """Build the workers and fill ``facts``."""

    @abstractmethod
    def __exit__(self, *exc: object) -> None:
        """Let the workers go."""

    # -- testing -------------------------------------------------------------------------------

    def test(self, arrays: Arrays) -> dict[str, float]:
        """Scores on the global test set, computed in fixed shards."""
        rows = len(self.recipe.ownership.test)
        shards = -(-rows // TEST_SHARD_ROWS)
        handle = self.share(arrays)
        parts = list(self.map("test", [(handle, i, shards) for i in range(shards)]))
        return cast(dict[str, float], next(self.map("metrics", [(merge_totals(parts),)])))

    def final_metrics(self, arrays: Arrays) -> dict[str, float]:
        """Scores that are computed once, after the last round."""
        return cast(dict[str, float], next(self.map("final_metrics", [(self.share(arrays),)])))

    def take_reports(self) -> list[Report]:
        """The reports collected so far; the list starts afresh."""
        reports, self.reports = self.reports, []
        return reports

    def take_retried(self) -> int:
        """How many clients were sent out again because a worker died, since the last call."""
        retried, self._retried = self._retried, 0
        return retried

    # -- Flower's grid -------------------------------------------------------------------------

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Train or evaluate the addressed clients; replies come in order of client index.

        Replies with deltas stream; stock strategies go over theirs several times and get a list.
        """
        groups = self._group(sorted(messages, key=lambda m: m.metadata.dst_node_id))
        return self._replies(groups) if self.deltas else list(self._replies(groups))

    def get_node_ids(self) -> Sequence[int]:
        """The clients, as a range: nothing is listed."""
        return range(self.num_clients)

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

    # -- rounds --------------------------------------------------------------------------------

    def _group(self, messages: list[Message]) -> list[_Group]:
        by_content: dict[tuple[int, str], _Group] = {}  # mostly one for all: look no deeper
        by_records: dict[tuple[int, int, str], _Group] = {}
        encoded: dict[int, tuple[Broadcast, Arrays]] = {}
        for message in messages:
            content, kind = message.content, message.metadata.message_type
            if (id(content), kind) not in by_content:
                records = content.array_records
                packed = records.get(PACKED)
                arrays = next((r for name, r in records.items() if name != PACKED), None)
                config = next(iter(content.config_records.values()), ConfigRecord())
                what = id(arrays if packed is None else packed)
                key = (what, id(config), kind)
                if key not in by_records:
                    if what not in encoded:
                        encoded[what] = self._encode(arrays, packed)
                    group = _Group(kind, dict(config), *encoded[what])
                    group.weights = None if packed is None else arrays
                    by_records[key] = group
                by_content[id(content), kind] = by_records[key]
            by_content[id(content), kind].messages[message.metadata.dst_node_id] = message
        return list(by_records.values())

    def _encode(
        self, record: ArrayRecord | None, packed: ArrayRecord | None
    ) -> tuple[Broadcast, Arrays]:
        if packed is not None:
            arrays = to_arrays(packed)
            payload = wire.pack(arrays)
        else:
            arrays = conform(to_arrays(record or ArrayRecord()), self.facts["arrays"])
            payload = self.codecs.down.encode(arrays, {})
        self._broadcasts += 1
        data = np.frombuffer(payload.data, dtype=np.uint8)
        broadcast = Broadcast(f"b{self._broadcasts}", data, payload.parts, packed is not None)
        return broadcast, self.codecs.down.decode(payload, arrays) if packed is None else arrays

    def _replies(self, groups: list[_Group]) -> Iterator[Message]:
        blocks: list[tuple[_Group, Block]] = []
        calls: dict[str, list[tuple[Any, ...]]] = {}
        known: dict[int, Any] = {}  # handles of what several groups share
        for group in groups:
            handles = []
            for value in (group.broadcast, group.weights):
                if value is not None and id(value) not in known:
                    plain = to_arrays(value) if isinstance(value, ArrayRecord) else value
                    known[id(value)] = self.share(plain)
                handles += [] if value is None else [known[id(value)]]
            for clients in cut(list(group.messages)):
                block = self._block(group, clients)
                blocks.append((group, block))
                calls.setdefault(group.kind, []).append((block, *handles))
        streams = {kind: self.map(kind, work) for kind, work in calls.items()}
        for group, block in blocks:
            result: BlockResult = next(streams[group.kind])
            self._take(block, result)
            yield from self._answers(group, block, result)

    def _block(self, group: _Group, clients: Sequence[int]) -> Block:
        return Block(
            server_round=int(group.config.get("server-round", 0)),
            clients=tuple(clients),
            states=tuple(self.states.get(c) for c in clients),
            config=group.config,
            reduce=self.reduce and group.kind == "train",
        )

    def _take(self, block: Block, result: BlockResult) -> None:
        self.reports.extend(result.reports)
        self.peak_bytes = max(self.peak_bytes, result.peak_bytes)
        for client, state in zip(block.clients, result.states, strict=True):
            if state is not None:
                self.states.put(client, state, block.server_round)
        for report in result.reports:
            if report.error:
                log.warning(report.error)
        self.on_reply(len(block.clients))

    def _answers(self, group: _Group, block: Block, result: BlockResult) -> Iterator[Message]:
        good = [r for r in result.reports if r.status == "ok"]
        for report in result.reports:
            if report.status == "failed":
                error = Error(code=2, reason=report.error)
                yield Message(error, reply_to=group.messages[report.client])
        if group.kind != "train":
            for report in good:
                yield _reply(group.messages[report.client], None, [report])
        elif block.reduce and good:
            assert result.mean is not None
            yield _reply(group.messages[good[0].client], self._hand(result.mean, group), good)
        else:
            for report, data in zip(good, result.payloads, strict=False):
                if self._packed:
                    delta = wire.unpack(Payload(data))
                else:
                    delta = self.codecs.up.decode(Payload(data), group.received)
                yield _reply(group.messages[report.client], self._hand(delta, group), [report])

    def _hand(self, delta: Arrays, group: _Group) -> tuple[str, Arrays]:
        return (DELTA, delta) if self.deltas else (ARRAYS, add(group.received, delta))

    @property
    def _pushed(self) -> list[Message]:
        return cast(list[Message], self.__dict__.setdefault("_pushed_messages", []))


def _reply(message: Message, arrays: tuple[str, Arrays] | None, reports: list[Report]) -> Message:
    """One reply for one client, or for several as one heavier client."""
    total = sum(r.num_examples for r in reports)
    metrics: dict[str, Any] = {NUM_EXAMPLES: total}
    for name in reports[0].metrics:
        metrics[name] = sum(r.metrics[name] * r.num_examples for r in reports) / total
    content = RecordDict({METRICS: MetricRecord(metrics)})
    if arrays:
        content[arrays[0]] = to_record(arrays[1])
    return Message(content, reply_to=message)


def _bind_task() -> None:
    """Flower's messages read a process-wide identity, which its own runtimes set; so do we."""
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
