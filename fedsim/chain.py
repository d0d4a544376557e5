"""Codecs one after the other, error feedback around them, and how a scenario's chain is built."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim import registry
from fedsim.arrays import Arrays
from fedsim.codec import (
    Codec,
    Feedback,
    Memory,
    Message,
    Payload,
    Reader,
    Rest,
    Sender,
    Writer,
    sensible,
)
from fedsim.errors import FedsimError, PluginError
from fedsim.payload import unframe

if TYPE_CHECKING:
    from fedsim.scenario import CodecSection

FEEDBACK = "error_feedback"
ORDER = ("transform", "sparsify", "quantise")
"""In this order codecs may follow each other, one of each; ``whole`` ones stand alone."""
PREFIX = "feedback/"


class Chain(Codec):
    """Several codecs: each one encodes the values that the one before it left.

    Args:
        codecs: At least one, in the order of encoding.
    """

    def __init__(self, codecs: Sequence[Codec]) -> None:
        self.codecs = tuple(codecs)
        self.lossless = all(c.lossless for c in codecs)
        self.contraction = all(c.contraction for c in codecs)
        self.unbiased = all(c.unbiased for c in codecs)
        self.linear = all(c.linear for c in codecs)
        self.stateful = any(c.stateful for c in codecs)
        self._planned = next((c for c in codecs if c.planned), None)
        self.planned = self._planned.planned if self._planned else ""

    @property
    def fits_weights(self) -> bool:
        """Whether all do."""
        return all(c.fits_weights for c in self.codecs)

    @property
    def signature(self) -> str:
        """Names and versions of all."""
        return "+".join(c.signature for c in self.codecs)

    def pack(self, arrays: Arrays, out: Writer, state: Arrays, sender: Sender) -> Arrays:
        """Let each codec write its part."""
        unplanned = replace(sender, plan={})
        for codec in self.codecs:
            out.about = ""
            arrays = codec.pack(arrays, out, state, sender if codec is self._planned else unplanned)
        return arrays

    def unpack(self, body: Reader, like: Arrays, rest: Rest) -> Arrays:
        """Let each codec read its part, the first one first."""

        def read(index: int, layout: Arrays) -> Arrays:
            if index == len(self.codecs):
                return rest(layout)
            return self.codecs[index].unpack(body, layout, lambda inner: read(index + 1, inner))

        return read(0, like)

    def alpha(self, like: Arrays) -> float:
        """The product: what one keeps of what the other keeps."""
        return math.prod(c.alpha(like) for c in self.codecs)

    def check(self, like: Arrays) -> None:
        """Let each codec look at the layout."""
        for codec in self.codecs:
            codec.check(like)

    def candidates(self) -> tuple[float, ...]:
        """Those of the codec that can be planned."""
        return self._planned.candidates() if self._planned else ()

    def reference(self) -> float:
        """That of the codec that can be planned."""
        return self._planned.reference() if self._planned else 0.0


class Compensated(Codec):
    """A codec with error feedback around it.

    Args:
        inner: A contractive codec.
        feedback: What is compressed, and what is remembered.
    """

    def __init__(self, inner: Codec, feedback: Feedback) -> None:
        self.inner, self.feedback = inner, feedback
        self.contraction = inner.contraction
        self.stateful = True
        self.planned = inner.planned
        self.accumulates = feedback.differences and feedback.server == "mean"

    @property
    def signature(self) -> str:
        """The codec's, and the feedback's name and version."""
        name = type(self.feedback).__module__.removeprefix("fedsim.feedback.")
        return f"{self.inner.signature}|{name}@{self.feedback.version}"

    def pack(self, arrays: Arrays, out: Writer, state: Arrays, sender: Sender) -> Arrays:
        """Write the message that the feedback sends, and keep its memory in the state."""

        def compress(target: Arrays) -> Message:
            part = Writer()
            part.arrays(self.inner.pack(target, part, state, sender))
            body = Reader(memoryview(b"".join(part.chunks)))
            return Message(part, self.inner.unpack(body, target, body.arrays))

        memory = memory_of(state, arrays)
        alpha = self.inner.alpha(arrays)
        message = self.feedback.send(arrays, memory, compress, sender, alpha)
        for entry, values in memory.items():
            state.update({f"{PREFIX}{entry}/{name}": x for name, x in values.items()})
        out.append(message.out)
        return {}

    def unpack(self, body: Reader, like: Arrays, rest: Rest) -> Arrays:
        """The change of the server's estimate, or the message for the update itself."""
        return self._received(body, like, {n: np.zeros_like(x) for n, x in like.items()})

    def estimate(self, payload: Payload, like: Arrays, memory: Arrays) -> Arrays:
        """The server's new estimate of the sender's update, or its change where a mean is kept."""
        before = {} if self.accumulates else memory_of(memory, like).get("estimate", {})
        if not before:
            return self.decode(payload, like)
        body = Reader(unframe(self.signature, payload, like))
        with sensible(body):
            return self._received(body, like, before)

    def residual(self, arrays: Arrays, state: Arrays) -> float | None:
        """As the feedback measures it; None before the first message."""
        memory = memory_of(state, arrays)
        return self.feedback.residual(arrays, memory) if memory else None

    def alpha(self, like: Arrays) -> float:
        """That of the codec inside."""
        return self.inner.alpha(like)

    def check(self, like: Arrays) -> None:
        """Let the codec inside look at the layout."""
        self.inner.check(like)

    def candidates(self) -> tuple[float, ...]:
        """Those of the codec inside."""
        return self.inner.candidates()

    def reference(self) -> float:
        """That of the codec inside."""
        return self.inner.reference()

    def _received(self, body: Reader, like: Arrays, before: Arrays) -> Arrays:
        def decode(layout: Arrays) -> Arrays:
            return self.inner.unpack(body, layout, body.arrays)

        return self.feedback.receive(body, decode, like, before)


def memory_of(state: Mapping[str, Any], like: Arrays) -> Memory:
    """What a feedback remembers, taken out of a sender's state."""
    entries = {k.split("/", 2)[1] for k in state if k.startswith(PREFIX)}
    return {e: {name: state[f"{PREFIX}{e}/{name}"] for name in like} for e in sorted(entries)}


def build_chain(sections: Sequence[Mapping[str, Any]], key: tuple[str | int, ...] = ()) -> Codec:
    """Build the codec that a list of scenario sections describes; an empty one is ``none``.

    Args:
        sections: As in YAML: name, options, and ``error_feedback`` in the last one.
        key: Where the list stands in the scenario, for errors.

    Raises:
        PluginError: The codecs contradict each other, or cannot have error feedback.
    """
    if len(sections) > 1:  # `none` in a chain does nothing
        sections = [section for section in sections if section["name"] != "none"]
    codecs = []
    feedback = None
    for i, section in enumerate(sections):
        with_feedback = section.get(FEEDBACK)
        plain = {k: v for k, v in section.items() if k != FEEDBACK}
        codecs.append(_at((*key, i), "codecs", plain))
        if with_feedback not in (None, "none"):
            if i + 1 < len(sections):
                raise PluginError(
                    "error feedback goes around the whole chain",
                    key=(*key, i, FEEDBACK),
                    hint="Write error_feedback in the last codec",
                )
            feedback = _at((*key, i, FEEDBACK), "feedback", feedback_section(with_feedback))
    _check_order(codecs, sections, key)
    codec = codecs[0] if len(codecs) == 1 else Chain(codecs) if codecs else _none()
    if feedback is None:
        return codec
    _check_contraction(codecs, sections, key)
    return Compensated(codec, feedback)


def check_downlink(codec: Codec, key: tuple[str | int, ...]) -> None:
    """Refuse codecs that make no sense on weights.

    Raises:
        PluginError: A sparse or low-rank codec without error feedback, or another feedback.
    """
    if isinstance(codec, Compensated):
        if not codec.feedback.for_weights:
            raise PluginError(
                "this error feedback is for updates, not for the server's weights",
                key=key,
                allowed="On the way down: ef21",
            )
    elif not codec.fits_weights:
        raise PluginError(
            "this codec leaves out most of what it is given, and on the way down that is weights",
            key=key,
            hint="Add error_feedback: ef21, so that it encodes changes of the weights",
        )


def feedback_section(value: Any) -> dict[str, Any]:
    """What stands behind ``error_feedback`` as a section; ``ef21+`` is short for ``ef21plus``."""
    section = dict(value) if isinstance(value, Mapping) else {"name": value}
    name = section.get("name")
    if not isinstance(name, str):
        raise PluginError(
            f"error_feedback must be a name, or a mapping with 'name', not {value!r}",
            allowed=f"Known: {', '.join(registry.available('feedback'))}",
        )
    return {**section, "name": name.replace("+", "plus")}


def _none() -> Codec:
    return registry.build("codecs", {"name": "none"})  # type: ignore[no-any-return]


def _at(key: tuple[str | int, ...], kind: str, section: Mapping[str, Any]) -> Any:
    try:
        return registry.build(kind, section)
    except FedsimError as error:
        error.key = (*key, *error.key[:1])
        raise


def _check_order(
    codecs: Sequence[Codec], sections: Sequence[Mapping[str, Any]], key: tuple[str | int, ...]
) -> None:
    for i, (first, second) in enumerate(pairwise(codecs)):
        one, two = sections[i]["name"], sections[i + 1]["name"]
        if "whole" in (first.stage, second.stage):
            alone = one if first.stage == "whole" else two
            what = f"codec '{alone}' stands alone, and cannot be chained with another"
        elif first.stage == second.stage:
            what = f"codecs '{one}' and '{two}' contradict each other: both {first.stage}"
        elif ORDER.index(first.stage) > ORDER.index(second.stage):
            what = f"codec '{one}' leaves nothing that '{two}' could {second.stage}"
        else:
            continue
        raise PluginError(
            what,
            key=(*key, i + 1),
            allowed=f"At most one each of: {', then '.join(ORDER)}",
        )


def _check_contraction(
    codecs: Sequence[Codec], sections: Sequence[Mapping[str, Any]], key: tuple[str | int, ...]
) -> None:
    for i, codec in enumerate(codecs):
        if not codec.contraction:
            options = registry.options(type(codec))
            ways = [o for o in ("rescaled", "stochastic", "scaled", "scale") if o in options]
            raise PluginError(
                f"error feedback needs codecs that contract; '{sections[i]['name']}' with these "
                "options does not",
                key=(*key, i),
                hint=f"See its option '{ways[0]}'" if ways else "Try topk, sign, int8 or powersgd",
            )


@dataclass(frozen=True)
class Codecs:
    """The codecs of both directions."""

    up: Codec
    down: Codec

    def check(self, like: Arrays) -> None:
        """Refuse what cannot encode arrays of this layout.

        Raises:
            PluginError: For example a rank above every matrix.
        """
        for way, codec in (("up", self.up), ("down", self.down)):
            try:
                codec.check(like)
            except PluginError as error:
                error.key = ("codec", way, *error.key)
                raise


def build_codecs(section: CodecSection) -> Codecs:
    """Build both directions' codecs; an empty chain is the codec ``none``."""
    sections = ([plugin.section for plugin in chain] for chain in (section.up, section.down))
    return Codecs(*map(build_chain, sections))
