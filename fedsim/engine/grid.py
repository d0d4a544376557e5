"""Flower's ``Grid`` over fedsim's workers: messages in, blocks out, counted, decoded replies back.

``WorkerGrid`` holds everything but execution. A subclass says how a value is shared with workers
and how calls are mapped over them: in this process (``InlineGrid``) or in Ray actors (``RayGrid``).
"""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self, cast

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from fedsim import registry, wire
from fedsim.arrays import Arrays, add, conform
from fedsim.chain import Codecs, build_codecs
from fedsim.client import Update
from fedsim.codec import Payload
from fedsim.engine.blocks import ANSWERED, Block, BlockResult, Broadcast, Report, bundled, cut
from fedsim.engine.checks import decode_update
from fedsim.engine.downlink import Downlink, one_content_only
from fedsim.engine.messages import (
    Answered,
    Group,
    MessageGrid,
    alike,
    bind_task,
    failure,
    own_weights,
    reject,
    reply,
)
from fedsim.engine.states import ClientStates
from fedsim.engine.update_norms import note_decoded
from fedsim.engine.uplink import ClientMean
from fedsim.engine.worker import Recipe
from fedsim.errors import ClientError, PayloadError
from fedsim.lgreco import Planner
from fedsim.seeds import Seeds
from fedsim.strategy import ARRAYS, DELTA, PACKED, to_arrays
from fedsim.task import merge_totals

if TYPE_CHECKING:
    from fedsim.engine.world import World

log = logging.getLogger("fedsim.clients")
TEST_SHARD_ROWS = 256
"""The global test set is tested in fixed shards of about this many rows."""


class WorkerGrid(MessageGrid):
    """A Flower grid whose nodes are the clients 0 .. num_clients - 1.

    Args:
        recipe: What each worker builds.
        on_reply: Called with the number of clients whenever a block has answered.
        states: Where clients' private states are kept.
        residuals: Where what clients' codecs remember is kept.

    Attributes:
        reduce: Let a block answer as one heavier client (for additive strategies).
        deltas: Hand deltas to the strategy; otherwise received weights plus delta.
        reports: What happened to each client since ``take_reports`` was last called.
        peak_bytes: Largest resident memory of a worker so far.
        world: Devices and virtual clock, where the scenario has them.
    """

    reduce = False
    deltas = False
    num_workers = 1
    world: World | None = None

    def __init__(
        self,
        recipe: Recipe,
        on_reply: Callable[[int], None] = lambda n: None,
        states: ClientStates | None = None,
        residuals: ClientStates | None = None,
    ) -> None:
        bind_task()
        self.recipe = recipe
        self.codecs: Codecs = build_codecs(recipe.scenario.codec)
        self._method = registry.build("clients", recipe.scenario.client.section)
        self._packed = wire.travels_packed(self._method)
        self.on_reply = on_reply
        self.num_clients = len(recipe.ownership.train)
        self.reports: list[Report] = []
        self.peak_bytes = 0
        self.facts: dict[str, Any] = {}
        self.states = states or ClientStates()
        self.residuals = residuals or ClientStates()
        by_layer = recipe.scenario.codec.by_layer
        self.downlink = Downlink(self.codecs.down, Seeds(recipe.seed), by_layer)
        self.clients_mean = ClientMean()
        lgreco = recipe.scenario.codec.lgreco
        self.planner = Planner(self.codecs.up, **lgreco.model_dump()) if lgreco else None
        self._retried = 0
        self._offered: Sequence[int] | None = None
        self._client_s: dict[str, float] = {}

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

    @property
    def memory(self) -> dict[str, Any]:
        """What the server's ends of the codecs remember, for a checkpoint."""
        planner = self.planner.memory if self.planner else {}
        return {"down": self.downlink.memory, "up": self.clients_mean.memory, "planner": planner}

    def restore(self, memory: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.downlink.restore(memory["down"])
        self.clients_mean.restore(memory["up"])
        if self.planner:
            self.planner.restore(memory["planner"])

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
        return self._replies(groups) if self.deltas else alike(list(self._replies(groups)))

    def get_node_ids(self) -> Sequence[int]:
        """The clients, as a range: nothing is listed; or those on offer."""
        return range(self.num_clients) if self._offered is None else self._offered

    def offer(self, clients: Sequence[int] | None) -> None:
        """Name these clients only, from now on; None names all again."""
        self._offered = clients

    def encode(
        self, records: Mapping[str, ArrayRecord], number: int
    ) -> tuple[Broadcast, Arrays, Arrays | None]:
        """A message as it travels and as the server has it, equal for equal numbers.

        Third, the weights beside a packed message, if there are any.
        """
        beside = [to_arrays(r, copy=False) for name, r in records.items() if name != PACKED]
        if PACKED in records:
            vectors = to_arrays(records[PACKED], copy=False)
            return self.downlink.pack(vectors), vectors, next(iter(beside), None)
        sent = conform(beside[0], self.facts["arrays"])
        return self.downlink.encode(sent, number=number), sent, None

    def answer(
        self, block: Block, result: BlockResult, broadcast: Broadcast, sent: Arrays
    ) -> Message:
        """The reply of a block of one client; its state is kept under the block's version."""
        (client,) = block.clients
        message = Message(RecordDict({}), dst_node_id=client, message_type="train")
        group = Group("train", {}, broadcast, sent, messages={client: message})
        self._take(block, result)
        return next(self._answers(group, block, result, {}))

    # -- rounds --------------------------------------------------------------------------------

    def _group(self, messages: list[Message]) -> list[Group]:
        by_content: dict[tuple[int, str], Group] = {}  # mostly one for all: look no deeper
        by_records: dict[tuple[int, int, str], Group] = {}
        encoded: dict[tuple[int, str], tuple[Broadcast, Arrays]] = {}
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
                    if (what, kind) not in encoded:
                        encoded[what, kind] = self._encode(arrays, packed, kind)
                    group = Group(kind, dict(config), *encoded[what, kind])
                    group.weights = None if packed is None else arrays
                    by_records[key] = group
                by_content[id(content), kind] = by_records[key]
            by_content[id(content), kind].messages[message.metadata.dst_node_id] = message
        kept = self.codecs.up.accumulates or any(
            group.broadcast.base is not None for group in by_records.values()
        )
        if (kept or self.planner) and len(by_records) > 1:
            raise one_content_only(len(by_records))
        return list(by_records.values())

    def _encode(
        self, record: ArrayRecord | None, packed: ArrayRecord | None, kind: str
    ) -> tuple[Broadcast, Arrays]:
        if packed is not None:
            vectors = to_arrays(packed, copy=False)
            return self.downlink.pack(vectors), vectors
        sent = conform(to_arrays(record or ArrayRecord(), copy=False), self.facts["arrays"])
        plan = self.planner.observe(sent) if self.planner and kind == "train" else b""
        return self.downlink.encode(sent, plan), sent

    def _replies(self, groups: list[Group]) -> Iterator[Message]:
        bundles: list[tuple[Group, list[Block]]] = []
        calls: list[tuple[Any, ...]] = []
        shared: dict[int, Any] = {}  # handles of what several groups share
        for group in groups:
            handles = self._handles(group, shared)
            for blocks in self._bundles(group):
                bundles.append((group, blocks))
                calls.append((blocks, group.kind, *handles))
        results = self._results(bundles, self.map("work", calls))
        held: list[Answered] = []
        for group, block, result in self._followed(results):
            self._take(block, result)
            if group.kind == "train" and self.codecs.up.accumulates:
                self.clients_mean.take(block, result, self.codecs.up, self.facts["arrays"])
                held.append((group, block, result))  # the mean is known after the last one
            else:
                yield from self._answers(group, block, result, {})
        mean = self.clients_mean.result(self.facts["arrays"]) if held else {}
        for group, block, result in held:
            yield from self._answers(group, block, result, mean)

    def _handles(self, group: Group, shared: dict[int, Any]) -> list[Any]:
        """Broadcast, and weights beside a packed one, where all workers can read them."""
        handles = []
        for value in (group.broadcast, group.weights):
            if value is not None:
                if id(value) not in shared:
                    plain = value if isinstance(value, Broadcast) else to_arrays(value, copy=False)
                    shared[id(value)] = self.share(plain)
                handles.append(shared[id(value)])
        return handles

    def _bundles(self, group: Group) -> list[list[Block]]:
        """The group's blocks, several in a call where they are quick; no result depends on it."""
        blocks = [self._block(group, clients) for clients in self._cut(group)]
        block_s = self._client_s.get(group.kind, math.inf) * len(group.messages) / len(blocks)
        return bundled(blocks, block_s, self.num_workers)

    def _cut(self, group: Group) -> list[Sequence[int]]:
        least = self.facts["block_size"] if group.kind == "train" else 1
        return cut(list(group.messages), least)

    def _results(
        self, bundles: list[tuple[Group, list[Block]]], stream: Iterator[list[BlockResult]]
    ) -> Iterator[Answered]:
        """Each block with its result, in order; notes how long a client takes."""
        for group, blocks in bundles:
            results = next(stream)
            seconds = [report.wall_s for result in results for report in result.reports]
            self._client_s[group.kind] = sum(seconds) / len(seconds)
            for block, result in zip(blocks, results, strict=True):
                for report in result.reports:
                    self.downlink.charge(report, group.broadcast)
                yield group, block, result

    def _followed(self, results: Iterable[Answered]) -> Iterable[Answered]:
        """Results with trips on the virtual clock; all at once where a client may be left out."""
        if self.world is None:
            yield from results
            return
        if self.world.leaves_out:
            results = list(results)
            self.world.judge([(block, r) for group, block, r in results if group.kind == "train"])
        for group, block, result in results:
            if group.kind == "train" and not self.world.leaves_out:
                self.world.follow(block, result)
            yield group, block, result

    def _block(self, group: Group, clients: Sequence[int]) -> Block:
        server_round = int(group.config.get("server-round", 0))
        return Block(
            server_round=server_round,
            clients=tuple(clients),
            states=(None,) * len(clients),
            config=group.config,
            reduce=self.reduce and group.kind == "train" and not self._leaves_out,
            num_examples=sum(len(self.recipe.ownership.train[c]) for c in clients),
            budgets=self.world.budgets(clients, server_round) if self.world else (),
            residuals=self.residuals_of(clients) if group.kind == "train" else (),
            weights=own_weights(group.messages[c] for c in clients),
        )

    @property
    def _leaves_out(self) -> bool:
        return self.world is not None and self.world.leaves_out

    def filled(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """A call's arguments with the states of its clients; ``map`` asks when it makes the call.

        The states of a whole cohort need not fit into memory.
        """
        first, *others = arguments
        if isinstance(first, list):
            first = [replace(b, states=tuple(map(self.states.get, b.clients))) for b in first]
        return (first, *others)

    def residuals_of(self, clients: Sequence[int]) -> tuple[Arrays | None, ...]:
        """What the codec of each client remembers; empty unless codecs remember."""
        return tuple(map(self.residuals.get, clients)) if self.codecs.up.stateful else ()

    def _take(self, block: Block, result: BlockResult) -> None:
        self.reports.extend(result.reports)
        self.peak_bytes = max(self.peak_bytes, result.peak_bytes)
        for report, state in zip(result.reports, result.states, strict=True):
            if state is not None:
                self.states.put(report.client, state, block.draw)
            if report.error:
                log.warning(report.error)
            if report.status in ANSWERED:
                self.downlink.heard(report.client)
        self.on_reply(len(block.clients))

    def _answers(
        self, group: Group, block: Block, result: BlockResult, mean: Arrays
    ) -> Iterator[Message]:
        """Replies of a block; ``mean`` over all clients, if given, is what each hands over."""
        good = [r for r in result.reports if r.status == "ok"]
        for report in result.reports:
            if report.status != "ok":
                yield failure(group.messages[report.client], report.error or report.status)
        if group.kind != "train":
            for report in good:
                yield reply(group.messages[report.client], None, [report])
        elif block.reduce and good:
            assert result.mean is not None
            self._heard(block, result, *good)
            weight = sum(block.weight(r.client, 0) for r in good)
            first = group.messages[good[0].client]
            yield reply(first, self._hand(mean or result.mean, group), good, weight)
        else:
            for report, data in zip(good, result.payloads, strict=False):
                message = group.messages[report.client]
                try:
                    delta = mean or self._decoded(group, block, report, Payload(data))
                except (ClientError, PayloadError) as problem:
                    yield failure(message, reject(report, block.server_round, problem))
                    continue
                self._heard(block, result, report)
                yield reply(message, self._hand(delta, group), [report])

    def _heard(self, block: Block, result: BlockResult, *reports: Report) -> None:
        """Let codecs of clients remember what they sent, now that the server could use it."""
        for report in reports:
            if report.client in result.residuals:
                self.residuals.put(report.client, result.residuals[report.client], block.draw)

    def _decoded(self, group: Group, block: Block, report: Report, payload: Payload) -> Arrays:
        if self._packed:
            update = Update(wire.unpack(payload), report.num_examples)
            return cast(Arrays, self._method.checked(update, group.sent).arrays)
        residual = block.residual(report.client)
        delta = decode_update(self.codecs.up, payload, group.sent, residual)
        return note_decoded(report, delta, self.codecs.up)

    def _hand(self, delta: Arrays, group: Group) -> tuple[str, Arrays]:
        return (DELTA, delta) if self.deltas else (ARRAYS, add(group.sent, delta))
