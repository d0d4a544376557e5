"""A worker: one process with a resident task, working through blocks of clients.

The same class runs in the driver (``InlineGrid``) and inside Ray actors (``RayGrid``).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from fedsim import registry, wire
from fedsim.arrays import Arrays, WeightedMean, add
from fedsim.chain import build_codecs
from fedsim.client import Client, ClientMethod, Step, Update
from fedsim.codec import Local, Payload, Sender
from fedsim.cost import Meter, Spent, Tally, counted
from fedsim.data import partition
from fedsim.engine.blocks import Block, BlockResult, Broadcast, ClientState, Report
from fedsim.engine.checks import (
    check_metrics,
    check_state,
    check_survives,
    check_update,
    check_weight,
    decode_update,
)
from fedsim.engine.gradients import mean_gradient
from fedsim.engine.process import peak_bytes, preserved_generators, time_limit
from fedsim.engine.update_norms import note_decoded, note_update
from fedsim.errors import FedsimError, ModelError, ScenarioError
from fedsim.loading import loading
from fedsim.scenario import Scenario
from fedsim.seeds import Seeds
from fedsim.task import Task, Totals


@dataclass(frozen=True)
class Recipe:
    """What a process needs to build its own worker: the recipe travels, the model does not.

    Attributes:
        scenario: What to build.
        ownership: Who owns which rows.
        seed: Root seed.
        scratch: A folder that the run's processes share, where all are on one machine.
    """

    scenario: Scenario
    ownership: partition.Ownership
    seed: int
    scratch: Path | None = None


class Worker:
    """Trains and tests clients on a resident task, reset in place for each of them.

    Args:
        recipe: What to build.
        expendable: Whether this process may be ended when a client hangs in compiled code.
    """

    @loading()
    def __init__(self, recipe: Recipe, expendable: bool = False) -> None:
        torch.set_num_threads(recipe.scenario.engine.threads_per_worker)
        scenario = recipe.scenario
        self.scenario, self._expendable = scenario, expendable
        self.seeds = Seeds(recipe.seed)
        with self._globals("build"):
            method = registry.build("clients", scenario.client.section)
            split = partition.bind(scenario, recipe.ownership)
            self.task = Task(scenario, split, recipe.seed, recipe.scratch)
        self.like = self.task.trainable()
        self.codecs = build_codecs(scenario.codec)
        self.codecs.check(self.like)
        self._packed = wire.travels_packed(method)
        self._train_client = self._plain_client if _is_plain(method, scenario) else self._app_client
        self.method = method
        # Devices' work is metered client by client.
        at_once = _is_plain(method, scenario) and not scenario.devices
        self._at_once = at_once and method.trains_blocks
        self._trained: dict[int, Update | Exception] = {}
        self.meter = Meter(self.task, _own(method)) if scenario.devices else None
        self._tally: Tally | None = None
        self._rows_at_once: int | None = None
        self._steps: dict[int, list[Step]] = {}
        self._received: tuple[str, Arrays] = ("", {})
        self._weights = self.like

    def facts(self) -> dict[str, Any]:
        """Initial arrays and what is worth telling about the model."""
        return {
            "arrays": self.like,
            "num_parameters": sum(p.numel() for p in self.task.model.parameters()),
            "parameters": list(self.task.parameters),
            "num_trainable": sum(x.size for x in self.like.values()),
            "key_metric": self.task.objective.key_metric,
            "block_size": self.method.block_size if self._at_once else 1,
            "weight_bytes": self.meter.weight_bytes if self.meter else 0,
        }

    def work(
        self,
        blocks: Sequence[Block],
        kind: Literal["train", "evaluate"],
        broadcast: Broadcast,
        weights: Arrays | None = None,
    ) -> list[BlockResult]:
        """Work through blocks, one after the other; global generators stay as they were.

        ``weights`` is what the server knows a packed broadcast to result in.
        """
        with preserved_generators():
            work = self._train if kind == "train" else self._evaluate
            return [work(block, broadcast, weights) for block in blocks]

    def _train(self, block: Block, broadcast: Broadcast, weights: Arrays | None) -> BlockResult:
        """Train every client of the block; a client that fails becomes a failed report."""
        received = self._receive(broadcast, weights)
        result = BlockResult([], [])
        mean = WeightedMean()
        self._trained = self._train_at_once(block, received)
        for i, (client, state) in enumerate(zip(block.clients, block.states, strict=True)):
            report = Report(client)
            if self.meter and not self._admits(report, block.budgets[i]):
                result.reports.append(report)
                result.states.append(None)
                continue
            self.seeds.seed_globals("train", block.draw, client)
            with self._reporting(report, block.server_round, "train"):
                check_survives(client, block.fatal)
                with self._time_limit(1), self._metered(report):
                    own = copy.deepcopy(state)  # the grid's stays as it is, whatever happens
                    update, changed = self._train_client(client, block, received, own)
                    payload, kept = self._encode(update, report, block, broadcast.plan)
                residual = block.residual(client)
                if block.reduce:
                    summand = self._summand(payload, received, residual, update, report)
                    mean.update(summand, block.weight(client, update.num_examples))
                else:
                    result.payloads.append(payload.data)
                if self.codecs.up.stateful:
                    result.residuals[client] = kept
            report.steps = self._steps.pop(client, [])
            result.reports.append(report)
            result.states.append(changed if report.status == "ok" else None)
        result.mean = mean.result() if mean.weight else None
        result.peak_bytes = peak_bytes()
        return result

    def rehearse(self, block: Block) -> Spent:
        """What the block's one client is going to do, if its method can tell; without doing it."""
        if self.meter is None or self.meter.method is None:
            return Spent()
        (client,) = block.clients
        with preserved_generators():
            if not self._admits(Report(client), block.budgets[0]):
                return Spent()
            self.seeds.seed_globals("train", block.draw, client)
            self._tally = Tally()
            self.meter.method.rehearse(self._client(client, block, {}, {}))
            with self._globals("cost", client):
                return self.meter.spent(self._tally)

    def _evaluate(self, block: Block, broadcast: Broadcast, weights: Arrays | None) -> BlockResult:
        """Test the received weights on each client's own test rows."""
        self._receive(broadcast, weights)
        result = BlockResult([], [None] * len(block.clients))
        for client in block.clients:
            report = Report(client)
            with self._reporting(report, block.server_round, "evaluate"), self._time_limit(1):
                check_survives(client, block.fatal)
                with self._globals("evaluate", block.server_round, client):
                    self.task.load(self._weights)
                    data = self.task.client_data(client, "test")
                    totals = self.task.evaluate(data, self.scenario.evaluate.batch_size)
                report.num_examples = self.task.split.num_examples(client, "test")
                report.metrics = self.task.objective.metrics(totals)
            result.reports.append(report)
        return result

    def test(self, arrays: Arrays, shard: int, num_shards: int) -> Totals:
        """Sums over one shard of the global test set.

        Raises:
            ModelError: The model cannot work on these rows.
        """
        with self._globals("test", shard):
            self.task.load(arrays)
            data = self.task.test_data(shard, num_shards)
            try:
                return self.task.evaluate(data, self.scenario.evaluate.batch_size)
            except Exception as error:
                raise ModelError(
                    f"the model fails on the test rows: {type(error).__name__}: {error}",
                    key=("model",),
                    hint="Do its inputs and outputs fit the columns and the labels?",
                ) from error

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Scores from summed totals."""
        return self.task.objective.metrics(totals)

    def final_metrics(self, arrays: Arrays) -> dict[str, float]:
        """Scores that are computed once, after the last round."""
        with self._globals("final"):
            self.task.load(arrays)
            self.task.model.eval()
            with torch.no_grad():
                return self.task.objective.final_metrics(self.task.model, self.task.split.test)

    def _admits(self, report: Report, budget: int) -> bool:
        """Whether the client's device can hold its batches, or smaller ones where that may be."""
        assert self.meter is not None
        self._rows_at_once = None
        if self.meter.method is None:  # nothing is known of a ClientApp's memory
            return True
        with self._globals("memory", report.client):
            allowed = self.scenario.devices and self.scenario.devices.out_of_memory == "accumulate"
            shrinks = bool(allowed) and self.meter.method.accumulates
            rows, needed = self.meter.rows_that_fit(report.client, budget, shrinks)
        if rows == 0:
            report.status, report.spent = "oom", Spent(memory_bytes=needed)
        self._rows_at_once = report.rows_at_once = rows
        return rows > 0

    @contextmanager
    def _metered(self, report: Report) -> Iterator[None]:
        """Measure what a client does, where the scenario has devices."""
        if self.meter is None:
            yield
            return
        self._tally = Tally()
        if isinstance(self.method, ClientMethod):
            yield
        else:
            with counted() as counter:
                yield
            self._tally.flops = counter.get_total_flops()
        with self._globals("cost", report.client):
            report.spent = self.meter.spent(self._tally)

    def _receive(self, broadcast: Broadcast, weights: Arrays | None) -> Arrays:
        if self._received[0] != broadcast.key:  # decoded once per worker and broadcast
            payload = Payload(memoryview(broadcast.payload))  # type: ignore[arg-type]
            if broadcast.packed:
                received = wire.unpack(payload)
                self._weights = self.method.receive(self.task, received, self.like, weights)
            else:
                received = self.codecs.down.decode(payload, self.like)
                if broadcast.base is not None:
                    received = add(broadcast.base, received)
                self._weights = received
            for x in received.values():
                x.flags.writeable = False  # the next client receives the same arrays
            self._received = (broadcast.key, received)
        return self._received[1]

    def _summand(
        self, payload: Payload, received: Arrays, residual: Arrays, update: Update, report: Report
    ) -> Arrays:
        """What a client adds to the mean of its block."""
        if self._packed:
            summand: Arrays = self.method.summand(wire.unpack(payload), received)
            return summand
        decoded = decode_update(self.codecs.up, payload, self.like, residual)
        return note_decoded(report, decoded, self.codecs.up, update.arrays)

    def _train_at_once(self, block: Block, received: Arrays) -> dict[int, Update | Exception]:
        """Updates, or the common failure, of a method that trains a block in one go."""
        if not self._at_once:
            return {}
        self.task.load(self._weights)
        self.seeds.seed_globals("train_many", block.server_round, *block.clients)
        clients = [client for client in block.clients if client not in block.fatal]
        views = [self._client(client, block, received, {}) for client in clients]
        try:
            with self._time_limit(len(views)):
                updates = self.method.train_many(views)
            return dict(zip(clients, updates, strict=True))
        except ScenarioError:
            raise
        except Exception as error:
            return dict.fromkeys(clients, error)

    def _time_limit(self, num_clients: int) -> AbstractContextManager[None]:
        limit = self.scenario.engine.client_timeout_s
        return time_limit(limit and limit * num_clients, self._expendable)

    def _plain_client(
        self, client: int, block: Block, received: Arrays, state: ClientState | None
    ) -> tuple[Update, ClientState | None]:
        if (done := self._trained.get(client)) is not None:
            if isinstance(done, Exception):
                raise done
            return done, None
        self.task.load(self._weights)
        view = self._client(client, block, received, state or {})
        update = self.method.train(view)
        if self._packed:
            wire.check(update.arrays)
            update = self.method.checked(update, received)
        return update, check_state(view.state) if self.method.needs_state else None

    def _app_client(
        self, client: int, block: Block, received: Arrays, state: ClientState | None
    ) -> tuple[Update, ClientState | None]:
        from fedsim.engine.apps import run_app

        return run_app(self, client, block, received, state)

    def _client(self, client: int, block: Block, received: Arrays, state: Arrays) -> Client:
        return Client(
            id=client,
            round=block.server_round,
            num_rounds=self.scenario.num_rounds,
            task=self.task,
            received=received,
            config=dict(block.config),
            state=state,
            generator=self.seeds.torch("client", block.draw, client),
            tally=self._tally,
            rows_at_once=self._rows_at_once,
            steps=self._steps.setdefault(client, []) if self.scenario.log_steps else None,
        )

    def _encode(
        self, update: Update, report: Report, block: Block, plan: bytes
    ) -> tuple[Payload, Arrays]:
        length = check_update(update, update.arrays if self._packed else self.like)
        report.metrics = check_metrics(update.metrics)
        local = self._local(report.client, block)
        sender = Sender(self.seeds, block.draw, report.client, self._plan(plan), local)
        kept = dict(block.residual(report.client))
        if self.codecs.up.accumulates:
            check_weight(update, kept)
        if self._packed:
            payload = wire.pack(update.arrays)
        else:
            payload = self.codecs.up.encode(update.arrays, kept, sender)
            note_update(report, update.arrays, length, self.codecs.up, kept)
        report.num_examples = update.num_examples
        report.up_bytes, report.up_parts = payload.num_bytes, dict(payload.parts)
        if self.scenario.codec.by_layer:
            report.up_layers = payload.by_array()
        return payload, kept

    def _local(self, client: int, block: Block) -> Local | None:
        if self._packed or not isinstance(self.method, ClientMethod):
            return None

        def gradient(weights: Arrays) -> Arrays:
            return mean_gradient(self._client(client, block, self._weights, {}), weights)

        return Local(self._weights, gradient)

    def _plan(self, plan: bytes) -> dict[str, float]:
        if not plan:
            return {}
        candidates = self.codecs.up.candidates()
        return {name: candidates[i] for name, i in zip(self.like, plan, strict=True)}

    @contextmanager
    def _reporting(self, report: Report, server_round: int, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        except ScenarioError:
            raise  # the user's option is wrong for every client: not this client's failure
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and not self._expendable:
                raise  # the user's; it never reaches Ray's workers
            text = (
                str(error) if isinstance(error, FedsimError) else f"{type(error).__name__}: {error}"
            )
            report.status = "failed"
            report.error = f"client {report.client}, round {server_round}, {stage}: {text}"
        report.wall_s = time.perf_counter() - start

    @contextmanager
    def _globals(self, *name: str | int) -> Iterator[None]:
        """Seed the global generators for library code, and put them back afterwards."""
        with preserved_generators():
            self.seeds.seed_globals(*name)
            yield


def _own(method: Any) -> ClientMethod | None:
    """The method if it is fedsim's; Flower's apps declare nothing."""
    return method if isinstance(method, ClientMethod) else None


def _is_plain(method: Any, scenario: Scenario) -> bool:
    return isinstance(method, ClientMethod) and not scenario.mods
