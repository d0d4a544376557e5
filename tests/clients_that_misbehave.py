"""Client methods for tests: they fail, lie, count, or record what is really encoded."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from fedsim.arrays import Arrays
from fedsim.client import Client, Update
from fedsim.clients.sgd import SGD
from fedsim.codec import Payload, Sender
from fedsim.codecs.none import NoCodec


@dataclass(kw_only=True)
class Faulty(SGD):
    """Misbehaves for the given clients and trains well for the others.

    Args:
        fault: What goes wrong.
        victims: For which clients.
    """

    fault: str = "raise"
    victims: tuple[int, ...] = (0,)

    def train(self, client: Client) -> Update:
        update = super().train(client)
        return self.spoil(update) if client.id in self.victims else update

    def spoil(self, update: Update) -> Update:
        name, x = next(iter(update.arrays.items()))
        rest = {k: v for k, v in update.arrays.items() if k != name}
        match self.fault:
            case "raise":
                raise ValueError("the dog ate it")
            case "nan":
                return replace(update, arrays={name: x * np.nan, **rest})
            case "shape":
                return replace(update, arrays={name: x.ravel()[:1], **rest})
            case "dtype":
                return replace(update, arrays={name: x.astype(np.float64), **rest})
            case "names":
                return replace(update, arrays={"other": x, **rest})
            case "weight":
                return replace(update, num_examples=0)
            case "interrupt":
                raise KeyboardInterrupt
        raise AssertionError(self.fault)


@dataclass(kw_only=True)
class Counting(SGD):
    """Keeps the number of its participations in ``client.state``."""

    needs_state: ClassVar[bool] = True

    def train(self, client: Client) -> Update:
        seen = client.state.get("seen", np.zeros(1)) + 1
        client.state["seen"] = seen
        update = super().train(client)
        return replace(update, metrics={**update.metrics, "seen": float(seen[0])})


class CapturingCodec(NoCodec):
    """The codec ``none``, remembering the length of every payload it made."""

    lengths: ClassVar[list[int]] = []

    def encode(self, arrays: Arrays, state: Arrays, sender: Sender | None = None) -> Payload:
        payload = super().encode(arrays, state, sender)
        self.lengths.append(len(payload.data))
        return payload


@dataclass(kw_only=True)
class Slow(SGD):
    """Takes its time.

    Args:
        seconds: How long each client sleeps before it trains.
        victims: Which clients sleep; all of them by default.
    """

    seconds: float = 0.1
    victims: tuple[int, ...] | None = None

    def train(self, client: Client) -> Update:
        if self.victims is None or client.id in self.victims:
            time.sleep(self.seconds)
        return super().train(client)


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
