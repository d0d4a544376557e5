"""The contract of codecs, how they chain, and the contract of error feedback.

A codec writes what it decides into the payload (positions, scales, seeds, coded symbols) and hands
the values that are left to the next codec of its chain; what the last one leaves is written raw.
Decoding goes the same way: each codec reads its part and asks for the rest. A codec alone is a
chain of one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from fedsim.arrays import Arrays, add, distance, non_finite, norm
from fedsim.errors import PayloadError
from fedsim.payload import HEADER, Chunk, Payload, Reader, Span, Writer, frame, unframe
from fedsim.seeds import Seeds

__all__ = [
    "HEADER",
    "Chunk",
    "Codec",
    "Compress",
    "Feedback",
    "Local",
    "Memory",
    "Message",
    "Payload",
    "Reader",
    "Rest",
    "Sender",
    "Span",
    "Writer",
    "frame",
    "unframe",
]

SERVER = -1
Stage = Literal["transform", "sparsify", "quantise", "whole"]
"""What a codec does. A chain has at most one of each of the first three, in this order; ``whole``
codecs stand alone."""
Rest = Callable[[Arrays], Arrays]
"""Decodes what the later codecs of a chain packed, given its layout."""


@dataclass(frozen=True)
class Local:
    """What a sender can find out about its own loss.

    Attributes:
        weights: What it received in this round.
        gradient: Gradient of its loss over all its rows, at any weights.
    """

    weights: Arrays
    gradient: Callable[[Arrays], Arrays]


@dataclass(frozen=True)
class Sender:
    """Who encodes, and when: names the random streams of an encoding.

    Attributes:
        seeds: The run's streams.
        round: Server round.
        client: Index of the client, or ``SERVER``.
        plan: Per array, the value of the codec's planned option; empty without a planner.
        local: The sender's loss; none for the server and for clients that are Flower's.
    """

    seeds: Seeds = field(default_factory=lambda: Seeds(0))
    round: int = 0
    client: int = SERVER
    plan: Mapping[str, float] = field(default_factory=dict)
    local: Local | None = None

    def seed(self, name: str) -> int:
        """A 63-bit seed of this sender and round, such as may travel in a payload."""
        return self.seeds.integer("codec", name, self.round, self.client)

    def common_seed(self, name: str) -> int:
        """A 63-bit seed that all senders of a round share."""
        return self.seeds.integer("codec", name, self.round)

    def rng(self, name: str) -> np.random.Generator:
        """A generator of this sender and round."""
        return np.random.default_rng(self.seed(name))


class Codec(ABC):
    """Encodes named arrays into a payload and back.

    Class attributes and properties declare what theory holds: ``contraction`` (``E|C(x)-x|^2 <=
    (1-alpha)|x|^2``), ``unbiased``, ``linear`` (in senders of equal seed), ``stateful``.

    Attributes:
        stage: What the codec does, which decides where it may stand in a chain.
        version: Raised whenever the bytes change; payloads of other versions are refused.
        lossless: Whether any value may be encoded, NaN and integers included.
        planned: Name of the option that a planner may set for each array; none by default.
        accumulates: Whether messages change a mean over all clients, which the server keeps.
    """

    is_plugin: ClassVar[bool] = True
    stage: ClassVar[Stage] = "whole"
    version: ClassVar[int] = 1
    lossless: bool = False
    planned: str = ""
    accumulates: bool = False
    contraction: bool = False
    unbiased: bool = False
    linear: bool = False
    stateful: bool = False

    @abstractmethod
    def pack(self, arrays: Arrays, out: Writer, state: Arrays, sender: Sender) -> Arrays:
        """Write this codec's part and return the values left to the next one.

        Args:
            arrays: Finite arrays of floating type.
            out: Takes bytes.
            state: The sender's own state; a stateful codec reads and replaces entries.
            sender: Names the random streams.
        """

    @abstractmethod
    def unpack(self, body: Reader, like: Arrays, rest: Rest) -> Arrays:
        """Read this codec's part, ask ``rest`` for the values left, and decode.

        Args:
            body: Gives bytes in the order of ``pack``.
            like: Names, dtypes and shapes of the result.
            rest: Called exactly once, with the layout of what ``pack`` returned.
        """

    def alpha(self, like: Arrays) -> float:
        """The guaranteed ``alpha`` of the contraction for arrays of this layout; 0 if unknown."""
        return 0.0

    def check(self, like: Arrays) -> None:  # noqa: B027  (most codecs fit every layout)
        """Refuse a layout on which the options make no sense.

        Raises:
            PluginError: For example a rank above every matrix.
        """

    def candidates(self) -> tuple[float, ...]:
        """Values of the planned option among which a planner chooses, cheapest first."""
        return ()

    def reference(self) -> float:
        """The own value of the planned option."""
        return float(getattr(self, self.planned))

    @property
    def fits_weights(self) -> bool:
        """Whether what is decoded resembles any arrays, and not only small updates."""
        return self.lossless or self.stage == "quantise"

    @property
    def signature(self) -> str:
        """Name and version, as the header's digest covers them."""
        module, kind = type(self).__module__, type(self).__qualname__
        own = module.startswith("fedsim.codecs.")
        name = module.removeprefix("fedsim.codecs.") if own else f"{module}:{kind}"
        return f"{name}@{self.version}"

    def encode(self, arrays: Arrays, state: Arrays, sender: Sender | None = None) -> Payload:
        """Encode; a stateful codec reads and replaces entries of ``state``.

        Raises:
            PayloadError: A value is not finite or not of floating type, and the codec is lossy.
        """
        if not self.lossless:
            refuse_unfit(arrays)
        out = Writer()
        out.arrays(self.pack(arrays, out, state, sender or Sender()))
        return out.payload(self.signature, arrays)

    def estimate(self, payload: Payload, like: Arrays, memory: Arrays) -> Arrays:
        """What the server takes for the sender's update, given the sender's state before.

        Without error feedback this is ``decode``.
        """
        return self.decode(payload, like)

    def residual(self, arrays: Arrays, state: Arrays) -> float | None:
        """L2 norm of what the receiver lacks of arrays just sent; None without error feedback."""
        return None

    def decode(self, payload: Payload, like: Arrays) -> Arrays:
        """Decode into the names, dtypes and shapes of ``like``.

        Raises:
            PayloadError: The bytes are truncated, altered, or of another codec or layout.
        """
        body = Reader(unframe(self.signature, payload, like))
        with sensible(body):
            result = self.unpack(body, like, body.arrays)
        if not self.lossless:
            refuse_unfit(result)
        return result


@dataclass(frozen=True)
class Message:
    """One compressed message: its bytes, and what the receiver will make of them."""

    out: Writer
    decoded: Arrays


Compress = Callable[[Arrays], Message]
Memory = dict[str, Arrays]
"""What a sender remembers: named sets of arrays in the layout of its updates."""


class Feedback(ABC):
    """Error feedback: what a sender compresses instead of its update, and what it remembers.

    A memory entry ``estimate`` is what the server believes this sender's update to be; without one,
    a message stands for the update itself. The memory is kept only when the reply was received, so
    a lost reply leaves sender and server where they were.

    Attributes:
        for_weights: Whether the server may use it on the way down, with weights as its updates.
        differences: Whether messages are changes of the estimate.
        server: What the server keeps and steps with: the ``mean`` of the estimates of all clients
            it has heard of, or ``mirrors`` of each of them, to average those of the cohort.
    """

    is_plugin: ClassVar[bool] = True
    version: ClassVar[int] = 1
    for_weights: ClassVar[bool] = False
    differences: ClassVar[bool] = True
    server: Literal["mean", "mirrors"] = "mean"

    @abstractmethod
    def send(
        self, update: Arrays, memory: Memory, compress: Compress, sender: Sender, alpha: float
    ) -> Message:
        """Compress one message and bring the memory up to date.

        Args:
            update: The sender's update of this round.
            memory: What the sender remembers, empty at first; entries are replaced.
            compress: Encodes arrays; what it decoded is what the receiver will have.
            sender: Who sends, and when.
            alpha: The codec's guaranteed contraction; 0 if unknown.
        """

    def receive(self, body: Reader, decode: Rest, like: Arrays, estimate: Arrays) -> Arrays:
        """The server's new estimate of the sender's update; the inverse of ``send``."""
        decoded = decode(like)
        return add(estimate, decoded) if self.differences else decoded

    def residual(self, update: Arrays, memory: Memory) -> float:
        """L2 norm of what the receiver lacks after a message.

        This is the remembered ``error``; without one, the distance of the estimate from the update
        (from the ``average`` of updates, where one is sent in its place).
        """
        if "error" in memory:
            return norm(memory["error"])
        return distance(memory.get("average", update), memory["estimate"])


@contextmanager
def sensible(body: Reader) -> Iterator[None]:
    """Turn whatever a body that makes no sense leads to into a ``PayloadError``."""
    try:
        with np.errstate(all="ignore"):
            yield
    except (ValueError, IndexError, OverflowError) as error:
        raise PayloadError(f"payload body makes no sense: {error}") from error
    body.finish()


def refuse_unfit(arrays: Arrays) -> None:
    """Refuse what a lossy codec cannot encode.

    Raises:
        PayloadError: A value is not finite, or not of floating type.
    """
    for name, x in arrays.items():
        if x.dtype.kind != "f":
            raise PayloadError(f"array {name} is {x.dtype}; lossy codecs take floating types")
        with np.errstate(all="ignore"):
            sum_is_finite = bool(np.isfinite(x.sum()))  # a cheap look that sees every NaN
        if not sum_is_finite and non_finite({name: x}):
            raise PayloadError(f"array {name} holds NaN or infinity, which lossy codecs refuse")
