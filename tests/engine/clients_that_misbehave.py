"""Client methods for tests: they fail, lie, count, or record what is really encoded."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedsim.arrays import Arrays
from fedsim.client import Client, Update
from fedsim.clients.sgd import SGD
from fedsim.codec import Payload, Sender, Writer
from fedsim.codecs.none import NoCodec
from fedsim.codecs.topk import TopK
from fedsim.strategy import to_arrays, to_record

MARK = 12345.0
"""A value that no training gives; the codec ``Damaging`` damages payloads that hold it."""


def _arrays(change: Callable[[Any], Any]) -> Callable[[Update], Any]:
    """A fault that changes the first array of an update."""

    def spoil(update: Update) -> Update:
        name, x = next(iter(update.arrays.items()))
        return replace(update, arrays={**update.arrays, name: change(x)})

    return spoil


def _metric(value: Any) -> Callable[[Update], Any]:
    return lambda update: replace(update, metrics={**update.metrics, "odd": value})


def _weight(value: Any) -> Callable[[Update], Any]:
    return lambda update: replace(update, num_examples=value)


def _raise(error: BaseException) -> Callable[[Update], Any]:
    def spoil(update: Update) -> Update:
        raise error

    return spoil


def _tensor(x: Any) -> Any:
    import torch

    return torch.from_numpy(x)


FAULTS: dict[str, tuple[Callable[[Update], Any], str]] = {
    "raise": (_raise(ValueError("the dog ate it")), "the dog ate it"),
    "memory": (_raise(MemoryError("no room")), "no room"),
    "exit": (lambda update: sys.exit("bye"), "SystemExit: bye"),
    "cancelled": (_raise(asyncio.CancelledError("off")), "CancelledError: off"),
    "generator": (_raise(GeneratorExit("off")), "GeneratorExit: off"),
    "nothing": (lambda update: None, "NoneType"),
    "nan": (_arrays(lambda x: x * np.nan), "NaN or infinity"),
    "infinity": (_arrays(lambda x: x + np.inf), "NaN or infinity"),
    "huge": (_arrays(lambda x: np.full_like(x, 1e38)), "overflow"),
    "shape": (_arrays(lambda x: x.ravel()[:1]), "float32 (1,), not"),
    "dtype": (_arrays(lambda x: x.astype(np.float64)), "float64"),
    "tensor": (_arrays(_tensor), "Tensor, not an array"),
    "names": (lambda u: replace(u, arrays={"other": next(iter(u.arrays.values()))}), "names"),
    "no arrays": (lambda u: replace(u, arrays={}), "names"),
    "weight 0": (_weight(0), "num_examples is 0"),
    "weight -1": (_weight(-1), "num_examples is -1"),
    "weight nan": (_weight(float("nan")), "num_examples is nan"),
    "weight infinity": (_weight(float("inf")), "num_examples is inf"),
    "weight huge": (_weight(10**400), "num_examples is 1000"),
    "weight text": (_weight("many"), "num_examples is 'many'"),
    "metric text": (_metric("good"), "metric odd is 'good'"),
    "metric list": (_metric([1.0, 2.0]), "metric odd is [1.0, 2.0]"),
    "metric none": (_metric(None), "metric odd is None"),
    "marked": (_arrays(lambda x: np.full_like(x, MARK)), ""),
}
"""What goes wrong, and a word of the message that must say so."""


@dataclass(kw_only=True)
class Faulty(SGD):
    """Misbehaves for the given clients and trains well for the others.

    Args:
        fault: What goes wrong: a key of ``FAULTS``, or ``interrupt``.
        victims: For which clients.
    """

    fault: str = "raise"
    victims: tuple[int, ...] = (0,)

    def train(self, client: Client) -> Update:
        update = super().train(client)
        if client.id not in self.victims:
            return update
        if self.fault == "interrupt":
            raise KeyboardInterrupt
        return FAULTS[self.fault][0](update)


@dataclass(kw_only=True)
class Counting(SGD):
    """Keeps the number of its participations in ``client.state``."""

    needs_state: ClassVar[bool] = True

    def train(self, client: Client) -> Update:
        seen = client.state.get("seen", np.zeros(1)) + 1
        client.state["seen"] = seen
        update = super().train(client)
        return replace(update, metrics={**update.metrics, "seen": float(seen[0])})


@dataclass(kw_only=True)
class CountingInPlace(SGD):
    """As ``Counting``, writing into the array that it was given; then it may fail.

    Args:
        fault: What client 2 does in round 2, after it has counted.
    """

    needs_state: ClassVar[bool] = True
    fault: Literal["none", "raise", "object"] = "none"

    def train(self, client: Client) -> Update:
        client.state.setdefault("seen", np.zeros(1))
        client.state["seen"] += 1
        update = super().train(client)
        if client.id == 2 and client.round == 2:
            if self.fault == "raise":
                raise ValueError("after it has counted")
            if self.fault == "object":
                client.state["odd"] = np.array([object()])
        return replace(update, metrics={**update.metrics, "seen": client.state["seen"].item()})


@dataclass(kw_only=True)
class Scribbling(SGD):
    """Leaves something behind in what it was given.

    Args:
        into: In what.
    """

    into: Literal["config", "received"] = "config"

    def train(self, client: Client) -> Update:
        before = len(client.config)
        if self.into == "config":
            cast(dict[str, Any], client.config)["mine"] = 1
        else:
            next(iter(client.received.values()))[:] = 0
        update = super().train(client)
        return replace(update, metrics={**update.metrics, "before": before})


@dataclass(kw_only=True)
class Hoarding(Counting):
    """Keeps a state of some size that changes in every round.

    Args:
        state_bytes: How large.
        odd: Client 2 puts something into its state that no file can hold.
    """

    state_bytes: int = 1_000_000
    odd: bool = False

    def train(self, client: Client) -> Update:
        update = super().train(client)
        client.state["hoard"] = np.full(self.state_bytes // 4, client.round, np.float32)
        if self.odd and client.id == 2:
            client.state["odd"] = np.array([object()])
        return update


@dataclass(kw_only=True)
class SomeMetrics(SGD):
    """Every other client reports a metric that the others do not know."""

    def train(self, client: Client) -> Update:
        update = super().train(client)
        more = {"odd": 1.0} if client.id % 2 else {}
        return replace(update, metrics={**update.metrics, **more})


class CapturingCodec(NoCodec):
    """The codec ``none``, remembering the length of every payload it made."""

    lengths: ClassVar[list[int]] = []

    def encode(self, arrays: Arrays, state: Arrays, sender: Sender | None = None) -> Payload:
        payload = super().encode(arrays, state, sender)
        self.lengths.append(len(payload.data))
        return payload


@dataclass(kw_only=True)
class Damaging(NoCodec):
    """The codec ``none``, damaging the payloads of clients whose fault is ``marked``.

    Args:
        damage: What happens to them.
    """

    damage: str = "truncated"

    def encode(self, arrays: Arrays, state: Arrays, sender: Sender | None = None) -> Payload:
        payload = super().encode(arrays, state, sender)
        if next(iter(arrays.values())).flat[0] != MARK:
            return payload
        if self.damage in LIES:  # sound bytes of values that no client may send
            lie = {name: np.full_like(x, LIES[self.damage]) for name, x in arrays.items()}
            return super().encode(lie, state, sender)
        return replace(payload, data=DAMAGES[self.damage](payload.data))


LIES = {"lying": np.nan, "overflowing": 1e38}
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[:-3],
    "oversized": lambda data: data + b"x" * 1_000_000,
    "empty": lambda data: b"",
    "flipped": lambda data: data[:-1] + bytes([data[-1] ^ 8]),
}


class LyingTopK(TopK):
    """The codec ``topk``, writing NaN for client 2 in round 1."""

    def pack(self, arrays: Arrays, out: Writer, state: Arrays, sender: Sender) -> Arrays:
        if (sender.client, sender.round) == (2, 1):
            arrays = {name: np.full_like(x, np.nan) for name, x in arrays.items()}
        return super().pack(arrays, out, state, sender)


@dataclass(kw_only=True)
class Slow(SGD):
    """Takes its time.

    Args:
        seconds: How long each client sleeps before it trains.
        victims: Which clients sleep; all of them by default.
        stubborn: Sleep on whatever exception comes.
        compiled: Count instead of sleeping, in compiled code that no signal ends.
    """

    seconds: float = 0.1
    victims: tuple[int, ...] | None = None
    stubborn: bool = False
    compiled: bool = False

    def train(self, client: Client) -> Update:
        if self.victims is None or client.id in self.victims:
            sum(range(10**12)) if self.compiled else self.sleep()
        return super().train(client)

    def sleep(self) -> None:
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            try:
                time.sleep(end - time.monotonic())
            except Exception:
                if not self.stubborn:
                    raise


@dataclass(kw_only=True)
class SlowCounting(Counting):
    """Takes its time and keeps a state.

    Args:
        seconds: How long each client sleeps before it trains.
    """

    seconds: float = 0.1

    def train(self, client: Client) -> Update:
        time.sleep(self.seconds)
        return super().train(client)


@dataclass(kw_only=True)
class Hungry(SGD):
    """Client 2 asks for more memory than there is, or is killed for it.

    Args:
        while_exists: Only as long as there is such a file.
        killed: By the system, with the whole process; otherwise it gets a ``MemoryError``.
        at_round: In this round only.
    """

    while_exists: str
    killed: bool = False
    at_round: int = 3

    def train(self, client: Client) -> Update:
        if client.id == 2 and client.round == self.at_round and Path(self.while_exists).exists():
            if self.killed:
                os.kill(os.getpid(), signal.SIGKILL)
            with limited_memory(2**28):
                np.ones(2**30)
        return super().train(client)


@contextmanager
def limited_memory(more: int) -> Iterator[None]:
    """Let this process have so many bytes more than now."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def faulty_app(fault: str, victim: int = 2) -> ClientApp:
    """A Flower app that answers with what it received, but wrongly for one client."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Any) -> Message:
        arrays = to_arrays(next(iter(message.content.array_records.values())))
        record, metrics = to_record(arrays), {"num-examples": 10, "loss": 1.0}
        if context.node_id == victim:
            record, metrics = spoiled(fault, arrays, metrics)
        content = RecordDict({"arrays": record, "metrics": MetricRecord(metrics)})
        return Message(content, reply_to=message)

    return app


def spoiled(
    fault: str, arrays: Arrays, metrics: dict[str, Any]
) -> tuple[ArrayRecord, dict[str, Any]]:
    """A reply with a fault that a ``ClientApp`` can have."""
    first = next(iter(arrays))
    match fault:
        case "broadcastable":
            arrays = {**arrays, first: np.ones(1, np.float32)}
        case "half":
            arrays = {**arrays, first: arrays[first].astype(np.float16)}
        case "nan":
            arrays = {**arrays, first: arrays[first] * np.nan}
        case "weight":
            metrics = {**metrics, "num-examples": float("nan")}
        case "no weight":
            metrics = {"loss": 1.0}
        case "weights":
            metrics = {**metrics, "num-examples": [1, 2]}
    return to_record(arrays), metrics


class FailsInRoundTwo(SGD):
    """As the tiny problem's client, until round 2."""

    def __init__(self) -> None:
        super().__init__(learning_rate=0.1, batch_size=8)

    def train(self, client: Client) -> Update:
        if client.round == 2:
            raise ValueError("later")
        return super().train(client)


class Growing(FailsInRoundTwo):
    """Says it has one example more every round."""

    def train(self, client: Client) -> Update:
        update = SGD.train(self, client)
        return Update(update.arrays, update.num_examples + client.round, update.metrics)
