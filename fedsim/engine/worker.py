"""A worker: one process with a resident task, working through blocks of clients.

The same class runs in the driver (``InlineGrid``) and inside Ray actors (``RayGrid``).
"""

from __future__ import annotations

import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fedsim import registry, wire
from fedsim.arrays import Arrays, WeightedMean, non_finite
from fedsim.client import Client, ClientMethod, Update
from fedsim.codec import Codec, Payload
from fedsim.codecs.none import NoCodec
from fedsim.data import partition
from fedsim.engine.blocks import Block, BlockResult, Broadcast, ClientState, Report
from fedsim.errors import ClientError, FedsimError, ModelError, ScenarioError
from fedsim.scenario import CodecSection, Plugin, Scenario
from fedsim.seeds import Seeds
from fedsim.task import Task, Totals


@dataclass(frozen=True)
class Recipe:
    """What a process needs to build its own worker: the recipe travels, the model does not."""

    scenario: Scenario
    ownership: partition.Ownership
    seed: int


class Worker:
    """Trains and tests clients on a resident task, reset in place for each of them."""

    def __init__(self, recipe: Recipe) -> None:
        torch.set_num_threads(recipe.scenario.engine.threads_per_worker)
        scenario = recipe.scenario
        self.scenario = scenario
        self.seeds = Seeds(recipe.seed)
        with self._globals("build"):
            method = registry.build("clients", scenario.client.section)
            self.task = Task(scenario, partition.bind(scenario, recipe.ownership), recipe.seed)
        self.like = self.task.trainable()
        self.codecs = build_codecs(scenario.codec)
        self._packed = wire.travels_packed(method)
        self._train_client = self._plain_client if _is_plain(method, scenario) else self._app_client
        self.method = method
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
        }

    def train(
        self, block: Block, broadcast: Broadcast, weights: Arrays | None = None
    ) -> BlockResult:
        """Train every client of the block; a client that fails becomes a failed report.

        ``weights`` is what the server knows a packed broadcast to result in.
        """
        received = self._receive(broadcast, weights)
        result = BlockResult([], [])
        mean = WeightedMean()
        with preserved_generators():
            for client, state in zip(block.clients, block.states, strict=True):
                report = Report(client, down_bytes=broadcast.num_bytes)
                self.seeds.seed_globals("train", block.server_round, client)
                with self._reporting(report, block.server_round, "train"):
                    with time_limit(self.scenario.engine.client_timeout_s):
                        update, state = self._train_client(client, block, received, state)
                    payload = self._encode(update, report)
                    if block.reduce:
                        mean.update(self._summand(payload, received), update.num_examples)
                    else:
                        result.payloads.append(payload.data)
                result.reports.append(report)
                result.states.append(state)
        result.mean = mean.result() if mean.weight else None
        result.peak_bytes = peak_bytes()
        return result

    def evaluate(
        self, block: Block, broadcast: Broadcast, weights: Arrays | None = None
    ) -> BlockResult:
        """Test the received weights on each client's own test rows."""
        self._receive(broadcast, weights)
        result = BlockResult([], list(block.states))
        for client in block.clients:
            report = Report(client, down_bytes=broadcast.num_bytes)
            with self._reporting(report, block.server_round, "evaluate"):
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

    def _receive(self, broadcast: Broadcast, weights: Arrays | None) -> Arrays:
        if self._received[0] != broadcast.key:  # decoded once per worker and broadcast
            payload = Payload(memoryview(broadcast.payload))  # type: ignore[arg-type]
            if not broadcast.packed:
                received = self._weights = self.codecs.down.decode(payload, self.like)
            else:
                received = wire.unpack(payload)
                self._weights = self.method.receive(self.task, received, self.like, weights)
            self._received = (broadcast.key, received)
        return self._received[1]

    def _summand(self, payload: Payload, received: Arrays) -> Arrays:
        if not self._packed:
            return self.codecs.up.decode(payload, self.like)
        arrays: Arrays = self.method.summand(wire.unpack(payload), received)
        return arrays

    def _plain_client(
        self, client: int, block: Block, received: Arrays, state: ClientState | None
    ) -> tuple[Update, ClientState | None]:
        self.task.load(self._weights)
        view = self._client(client, block, received, state or {})
        update = self.method.train(view)
        if self._packed:
            wire.check(update.arrays)
            update = self.method.checked(update, received)
        return update, view.state if self.method.needs_state else None

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
            config=block.config,
            state=state,
            generator=self.seeds.torch("client", block.server_round, client),
        )

    def _encode(self, update: Update, report: Report) -> Payload:
        check_update(update, update.arrays if self._packed else self.like)
        if self._packed:
            payload = wire.pack(update.arrays)
        else:
            payload = self.codecs.up.encode(update.arrays, {})
        report.num_examples = update.num_examples
        report.metrics = {k: float(v) for k, v in update.metrics.items()}
        report.up_bytes, report.up_parts = payload.num_bytes, dict(payload.parts)
        return payload

    @contextmanager
    def _reporting(self, report: Report, server_round: int, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        except ScenarioError:
            raise  # the user's option is wrong for every client: not this client's failure
        except Exception as error:
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


@contextmanager
def preserved_generators() -> Iterator[None]:
    """Leave the global generators of Python, NumPy and torch as they were."""
    import random

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise ``ClientError`` in code that works longer; compiled code is stopped when it returns."""

    def expire(signum: int, frame: Any) -> None:
        raise ClientError(f"worked longer than engine.client_timeout_s = {seconds:g}")

    if seconds is None:
        yield
        return
    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def check_update(update: Update, like: Arrays) -> None:
    """Reject an update that must not reach aggregation.

    Raises:
        ClientError: Names, shapes or dtypes differ from the model's, a value is not finite, or the
            weight is not positive.
    """
    if update.arrays.keys() != like.keys():
        odd = sorted(set(update.arrays) ^ set(like))
        raise ClientError(f"the update's array names differ from the model's: {odd[:3]}")
    for name, x in update.arrays.items():
        if x.shape != like[name].shape or x.dtype != like[name].dtype:
            raise ClientError(
                f"the update's {name} is {x.dtype} {x.shape}, not "
                f"{like[name].dtype} {like[name].shape}"
            )
    if bad := non_finite(update.arrays):
        raise ClientError(
            f"the update's {bad} holds NaN or infinity",
            hint="Try a lower learning rate or max_grad_norm",
        )
    if not update.num_examples > 0:
        raise ClientError(f"num_examples is {update.num_examples}, not positive")


@dataclass(frozen=True)
class Codecs:
    """The codecs of both directions."""

    up: Codec
    down: Codec


def build_codecs(section: CodecSection) -> Codecs:
    """Build both directions' codecs; an empty chain is the codec ``none``."""

    def one(chain: tuple[Plugin, ...], direction: str) -> Codec:
        if len(chain) > 1:
            raise ScenarioError(
                "a chain of several codecs cannot be built: each codec here ends in bytes",
                key=("codec", direction),
                hint="Give one codec",
            )
        return registry.build("codecs", chain[0].section) if chain else NoCodec()

    return Codecs(one(section.up, "up"), one(section.down, "down"))


def _is_plain(method: Any, scenario: Scenario) -> bool:
    return isinstance(method, ClientMethod) and not scenario.mods


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
