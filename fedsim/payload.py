"""Payloads: byte strings that could be written to a socket, with a header and counted parts.

    magic 2 | version 1 | codec 3 | layout 4 | length 6 | checksum 4      20 bytes, then the body

``codec`` is a digest of the codec chain and its versions, ``layout`` one of the arrays' names,
dtypes and shapes; the checksum is the xxh3 of the body. A payload that another codec, version or
layout made, or that was cut or altered, is refused before anything is made of its body.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import xxhash
from numpy.typing import DTypeLike, NDArray

from fedsim.arrays import Arrays, layout_digest
from fedsim.errors import PayloadError

Chunk = bytes | memoryview
"""A stretch of a payload's body."""
Span = tuple[str, str]
"""An array, and a part of the bytes that are about it."""


@dataclass(frozen=True)
class Frame:
    """A kind of message: what stands before its body.

    Attributes:
        header: Magic, version, fields of the kind's own, length in two parts, xxh3 of the body.
        magic: Two bytes that name the kind.
        version: Raised whenever the bytes of any body change.
    """

    header: struct.Struct
    magic: bytes
    version: int

    def close(self, body: Sequence[Chunk], *fields: bytes) -> bytes:
        """The body behind its header."""
        length = divmod(sum(map(len, body)), 2**32)
        start = self.header.pack(self.magic, self.version, *fields, *length, _checksum(body))
        return b"".join([start, *body])  # the only copy

    def open(self, data: Chunk) -> tuple[tuple[bytes, ...], memoryview]:
        """The kind's own fields, and the body.

        Raises:
            PayloadError: The bytes are of another kind or version, cut or altered.
        """
        if len(data) < self.header.size:
            raise PayloadError(f"payload of {len(data)} bytes is shorter than its header")
        magic, version, *fields, high, low, checksum = self.header.unpack_from(data)
        body = memoryview(data)[self.header.size :]
        if magic != self.magic or version != self.version:
            raise PayloadError(f"payload has no fedsim header of version {self.version}")
        header = self.header.pack(magic, version, *fields, high, low, checksum)  # padding is 0
        sound = header == data[: len(header)] and (high << 32) + low == len(body)
        if not sound or checksum != _checksum([body]):
            raise PayloadError("payload is truncated or altered (length or checksum)")
        return tuple(fields), body


ARRAYS = Frame(struct.Struct("<2sB3s4sHII"), b"fs", 3)
"""Encoded arrays; the fields are digests of the codec and of the layout."""
HEADER = ARRAYS.header


@dataclass(frozen=True)
class Payload:
    """An encoded update.

    Attributes:
        data: The bytes, header included.
        parts: How many of the bytes are what: ``header``, ``values``, ``indices``, ``scales``,
            ``seeds``.
        spans: The same by what the bytes are about, as ``Writer`` has it.
        standing: As in ``Writer``.
    """

    data: bytes
    parts: Mapping[str, int] = field(default_factory=dict)
    spans: Mapping[Span, int] = field(default_factory=dict)
    standing: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Exact encoded length."""
        return len(self.data)

    def by_array(self) -> dict[Span, int]:
        """Bytes by array and part; the header, a seed and a plan are about no array."""
        return split(self.spans, self.standing)


class Writer:
    """Collects the body of a payload, chunk by chunk, and what each byte is for.

    Attributes:
        about: Name of the array that the next bytes are about; empty where they are about none.
        standing: For a vector taken from several arrays, how many of its entries each of them has.
    """

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self.spans: dict[Span, int] = {}
        self.standing: dict[str, dict[str, int]] = {}
        self.about = ""

    def put(self, data: Chunk | NDArray[Any], part: str) -> None:
        """Append bytes, or the raw values of an array, that count as ``part``."""
        chunk = raw(data) if isinstance(data, np.ndarray) else data
        self.chunks.append(chunk)
        key = (self.about, part)
        self.spans[key] = self.spans.get(key, 0) + len(chunk)

    def number(self, value: int, part: str = "header") -> None:
        """Append an integer from 0 on, seven bits a byte."""
        digits = bytearray()
        while value > 127:
            digits.append(value & 127 | 128)
            value >>= 7
        self.put(bytes([*digits, value]), part)

    def append(self, other: Writer) -> None:
        """Append what another writer collected."""
        self.chunks += other.chunks
        self.standing |= other.standing
        for key, length in other.spans.items():
            self.spans[key] = self.spans.get(key, 0) + length

    def arrays(self, arrays: Arrays) -> None:
        """Append raw values of arrays, one after the other."""
        for name, x in arrays.items():
            if x.size:
                self.about = name
                self.put(x, "values")

    def payload(self, signature: str, layout: Arrays) -> Payload:
        """What was collected, behind its header."""
        framed = frame(signature, layout, self.chunks, **self.parts)
        return replace(framed, spans=self.spans, standing=self.standing)

    @property
    def parts(self) -> dict[str, int]:
        """How many of the bytes are what."""
        parts: dict[str, int] = {}
        for (_, part), length in self.spans.items():
            parts[part] = parts.get(part, 0) + length
        return parts


def split(spans: Mapping[Span, int], standing: Mapping[str, Mapping[str, int]]) -> dict[Span, int]:
    """Bytes by array and part: those of a common vector by the entries that each array has in it.

    >>> split({("all", "indices"): 7, ("", "header"): 3}, {"all": {"a": 1, "b": 2}})
    {('a', 'indices'): 2, ('b', 'indices'): 5}
    """
    found: dict[Span, int] = {}
    for (about, part), length in spans.items():
        entries = standing.get(about, {about: 1} if about else {})
        total, before = sum(entries.values()), 0
        for name, count in entries.items():
            share = (before + count) * length // total - before * length // total
            before += count
            if share:
                found[name, part] = found.get((name, part), 0) + share
    return found


class Reader:
    """Takes a body apart in the order in which it was written.

    Raises:
        PayloadError: (from every method) The body does not hold what is asked for.
    """

    def __init__(self, body: memoryview) -> None:
        self._body = body
        self._offset = 0

    def take(self, length: int) -> memoryview:
        """The next bytes."""
        start, self._offset = self._offset, self._offset + length
        if self._offset > len(self._body):
            raise PayloadError("payload body ends too early")
        return self._body[start : self._offset]

    def array(self, dtype: DTypeLike, count: int) -> NDArray[Any]:
        """The next values as a read-only array; without a copy where they are aligned."""
        kind = np.dtype(dtype)
        x = np.frombuffer(self.take(count * kind.itemsize), kind)
        return x if x.flags.aligned else x.copy()

    def number(self, limit: int) -> int:
        """The next integer, 0 to ``limit``."""
        value = 0
        for shift in range(0, 70, 7):
            digit = self.take(1)[0]
            value |= (digit & 127) << shift
            if digit < 128:
                break
        if value > limit:
            raise PayloadError(f"payload body holds {value} where at most {limit} is possible")
        return value

    def arrays(self, like: Arrays) -> Arrays:
        """Read-only raw values in the layout of ``like``."""
        return {
            name: np.frombuffer(self.take(x.nbytes), x.dtype).reshape(x.shape)
            for name, x in like.items()
        }

    def finish(self) -> None:
        """Nothing may be left."""
        if self._offset != len(self._body):
            raise PayloadError(f"payload body has {len(self._body) - self._offset} bytes too many")


def raw(x: NDArray[Any]) -> Chunk:
    """The raw values of an array, without a copy where it is contiguous."""
    return np.ascontiguousarray(x).reshape(-1).view(np.uint8).data if x.size else b""


def frame(signature: str, layout: Arrays, body: Sequence[Chunk], **parts: int) -> Payload:
    """Put a header before a body; ``parts`` says what the body consists of."""
    data = ARRAYS.close(body, codec_digest(signature), layout_digest(layout))
    counts = parts or {"values": len(data) - HEADER.size}
    return Payload(data, {**counts, "header": HEADER.size + counts.get("header", 0)})


def unframe(signature: str, payload: Payload, like: Arrays) -> memoryview:
    """Check a payload's header against codec and layout, and return its body.

    Raises:
        PayloadError: The header or the checksum does not fit.
    """
    (codec, layout), body = ARRAYS.open(payload.data)
    if codec != codec_digest(signature):
        raise PayloadError(
            f"payload is of another codec, or another version of it, than {signature}"
        )
    if layout != layout_digest(like):
        raise PayloadError("payload is for arrays of other names, dtypes or shapes")
    return body


def codec_digest(signature: str) -> bytes:
    """Three bytes that identify a chain of codecs and their versions."""
    return hashlib.blake2b(signature.encode(), digest_size=3).digest()


def _checksum(body: Iterable[Chunk]) -> int:
    checksum = xxhash.xxh3_64()
    for chunk in body:
        checksum.update(chunk)
    return checksum.intdigest() & 0xFFFFFFFF
