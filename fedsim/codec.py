"""The contract of a codec, and the frame of every payload.

A payload is a byte string that could be written to a socket: a 20-byte header (magic, version,
codec id, layout, body length, checksum) and the body. Its length is what the ledger counts.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from fedsim.arrays import Arrays, layout_digest
from fedsim.errors import PayloadError

HEADER = struct.Struct("<2sBB4sQI")  # magic, version, codec, layout, length, checksum (xxh3)
MAGIC = b"fs"
VERSION = 1


@dataclass(frozen=True)
class Payload:
    """An encoded update.

    Attributes:
        data: The bytes, header included.
        parts: How many of the bytes are what: ``header``, ``values``, ``indices``, ``scales`` ...
    """

    data: bytes
    parts: Mapping[str, int] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Exact encoded length."""
        return len(self.data)


class Codec(ABC):
    """Encodes named arrays into a payload and back.

    Class attributes declare what theory holds: ``contraction`` (``E|C(x)-x|^2 <= (1-a)|x|^2``),
    ``unbiased``, ``linear``, ``stateful``.
    """

    is_plugin: ClassVar[bool] = True
    codec_id: ClassVar[int]
    contraction: ClassVar[bool] = False
    unbiased: ClassVar[bool] = False
    linear: ClassVar[bool] = False
    stateful: ClassVar[bool] = False

    @abstractmethod
    def encode(self, arrays: Arrays, state: Arrays) -> Payload:
        """Encode; a stateful codec reads and replaces entries of ``state``."""

    @abstractmethod
    def decode(self, payload: Payload, like: Arrays) -> Arrays:
        """Decode into the names, dtypes and shapes of ``like``.

        Raises:
            PayloadError: The bytes are truncated, altered, or of another codec or layout.
        """


Chunk = bytes | memoryview
"""A stretch of a payload's body."""


def frame(codec_id: int, layout: Arrays, body: Sequence[Chunk], **parts: int) -> Payload:
    """Put a header before a body; ``parts`` says what the body consists of."""
    checksum = xxhash.xxh3_64()
    length = 0
    for chunk in body:
        checksum.update(chunk)
        length += len(chunk)
    header = HEADER.pack(
        MAGIC, VERSION, codec_id, layout_digest(layout), length, checksum.intdigest() & 0xFFFFFFFF
    )
    data = b"".join([header, *body])  # the only copy
    return Payload(data, {"header": HEADER.size, **(parts or {"values": length})})


def unframe(codec_id: int, payload: Payload, like: Arrays) -> memoryview:
    """Check a payload's header against codec and layout, and return its body.

    Raises:
        PayloadError: The header or the checksum does not fit.
    """
    data = payload.data
    if len(data) < HEADER.size:
        raise PayloadError(f"payload of {len(data)} bytes is shorter than its header")
    magic, version, codec, layout, length, checksum = HEADER.unpack_from(data)
    body = memoryview(data)[HEADER.size :]
    if magic != MAGIC or version != VERSION:
        raise PayloadError("payload has no fedsim header of this version")
    if codec != codec_id:
        raise PayloadError(f"payload is of codec {codec}, not {codec_id}")
    if layout != layout_digest(like):
        raise PayloadError("payload is for arrays of other names, dtypes or shapes")
    if length != len(body) or checksum != xxhash.xxh3_64_intdigest(body) & 0xFFFFFFFF:
        raise PayloadError("payload is truncated or altered (length or checksum)")
    return body


def pack(arrays: Iterable[NDArray[Any]]) -> list[Chunk]:
    """Raw values of arrays, one after the other, without a copy where they are contiguous."""
    return [np.ascontiguousarray(x).reshape(-1).view(np.uint8).data for x in arrays if x.size]


def unpack(body: memoryview, like: Arrays) -> Arrays:
    """Read-only views of raw values in the layout of ``like``.

    Raises:
        PayloadError: The length does not fit.
    """
    if len(body) != sum(x.nbytes for x in like.values()):
        raise PayloadError("payload body has another length than its layout")
    result: Arrays = {}
    offset = 0
    for name, x in like.items():
        flat = np.frombuffer(body, dtype=x.dtype, count=x.size, offset=offset)
        result[name] = flat.reshape(x.shape)
        offset += x.nbytes
    return result
