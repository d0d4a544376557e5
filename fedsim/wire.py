"""Messages that are not shaped like the model: named vectors of any length, packed and checked.

``seeds`` and ``projection`` methods and their strategies exchange a few vectors whose lengths
differ from message to message. The message describes itself: behind a header, each vector
has a name, a dtype, a count and a width; unsigned integers take as many bits as the largest of
them needs, everything else its own bytes. A count is never believed beyond the bytes that are
there.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from fedsim.arrays import Arrays, non_finite
from fedsim.codec import Payload
from fedsim.errors import ClientError, PayloadError
from fedsim.partners import PACKED_KINDS

DTYPES = ("u1", "u2", "u4", "u8", "f2", "f4", "f8")
MAX_VECTORS = 16
MAX_NAME = 32
HEADER = struct.Struct("<2sBxQI")  # magic, version, length and checksum (xxh3) of the body
MAGIC = b"fw"
VERSION = 1
_HEAD = struct.Struct("<BBI")  # dtype, width in bits, count; the name and its length come before


def pack(arrays: Arrays) -> Payload:
    """Pack vectors in their order.

    >>> arrays = {"seeds": np.uint16([3, 4095]), "scalars": np.float32([0.5, -2.0])}
    >>> payload = pack(arrays)
    >>> payload.num_bytes, unpack(payload)["seeds"].tolist()
    (54, [3, 4095])
    """
    body: list[bytes] = [bytes([len(arrays)])]
    parts = {"header": HEADER.size + 1, "indices": 0, "values": 0}
    for name, x in arrays.items():
        label = name.encode()
        width = _width(x)
        data = _pack(x, width)
        body += [bytes([len(label)]), label, _HEAD.pack(_code(x), width, x.size), data]
        parts["header"] += 1 + len(label) + _HEAD.size
        parts["indices" if x.dtype.kind == "u" else "values"] += len(data)
    return Payload(framed(b"".join(body)), parts)


def framed(body: bytes) -> bytes:
    """A body behind its header."""
    return HEADER.pack(MAGIC, VERSION, len(body), _checksum(body)) + body


def unpack(payload: Payload) -> Arrays:
    """The vectors of a payload, dtypes included.

    Raises:
        PayloadError: The bytes are cut, altered, or no message of this form.
    """
    data = bytes(payload.data)
    if len(data) < HEADER.size:
        raise PayloadError(f"message of {len(data)} bytes is shorter than its header")
    magic, version, length, checksum = HEADER.unpack_from(data)
    body = data[HEADER.size :]
    if magic != MAGIC or version != VERSION:
        raise PayloadError("message has no packed vectors of this version")
    if length != len(body) or checksum != _checksum(body):
        raise PayloadError("message is truncated or altered (length or checksum)")
    try:
        arrays, end = _unpack_all(body)
    except (struct.error, IndexError, UnicodeDecodeError):
        raise PayloadError("message ends inside a vector") from None
    if end != len(body):
        raise PayloadError(f"message has {len(body) - end} bytes too many")
    return arrays


def _checksum(body: bytes) -> int:
    return xxhash.xxh3_64_intdigest(body) & 0xFFFFFFFF


def travels_packed(method: Any) -> bool:
    """Whether a client method sends vectors of its own instead of arrays like the model's."""
    return getattr(method, "sends", "delta") in PACKED_KINDS


def check(arrays: Mapping[str, NDArray[Any]]) -> None:
    """Refuse what cannot travel in this form.

    Raises:
        ClientError: A name is too long, something is no vector, of another dtype, or not finite.
    """
    if not 0 < len(arrays) <= MAX_VECTORS:
        raise ClientError(f"the update has {len(arrays)} vectors; 1 to {MAX_VECTORS} can be sent")
    for name, x in arrays.items():
        if not 0 < len(name.encode()) <= MAX_NAME:
            raise ClientError(f"the vector name {name!r} is not 1 to {MAX_NAME} bytes long")
        if x.ndim != 1 or x.dtype.str[1:] not in DTYPES:
            raise ClientError(
                f"the update's {name} is {x.dtype} {x.shape}",
                allowed=f"Vectors of {', '.join(DTYPES)}",
            )
    if bad := non_finite(arrays):
        raise ClientError(
            f"the update's {bad} holds NaN or infinity",
            hint="Try a lower learning rate or a clip",
        )


def _code(x: NDArray[Any]) -> int:
    return DTYPES.index(x.dtype.str[1:])


def _width(x: NDArray[Any]) -> int:
    """Bits of a value: what the largest unsigned integer needs, or the dtype's own."""
    if x.dtype.kind != "u":
        return x.dtype.itemsize * 8
    return max(1, int(x.max()).bit_length()) if x.size else 1


def _pack(x: NDArray[Any], width: int) -> bytes:
    if x.dtype.kind != "u" or width == x.dtype.itemsize * 8:
        return x.astype(x.dtype.newbyteorder("<"), copy=False).tobytes()
    raw = x.astype(x.dtype.newbyteorder("<"), copy=False)[:, None].view(np.uint8)
    bits = np.unpackbits(raw, axis=1, bitorder="little")[:, :width]
    return np.packbits(bits, bitorder="little").tobytes()


def _unpack_all(body: bytes) -> tuple[Arrays, int]:
    arrays: Arrays = {}
    count, position = body[0], 1
    if count > MAX_VECTORS:
        raise PayloadError(f"message claims {count} vectors; at most {MAX_VECTORS} are sent")
    for _ in range(count):
        length = body[position]
        name = body[position + 1 : position + 1 + length].decode()
        position += 1 + length
        code, width, size = _HEAD.unpack_from(body, position)
        position += _HEAD.size
        if name in arrays or not 0 < length <= MAX_NAME or code >= len(DTYPES):
            raise PayloadError(f"message has a vector {name!r} twice or of an unknown kind")
        arrays[name], position = _unpack(body, position, np.dtype("<" + DTYPES[code]), width, size)
    return arrays, position


def _unpack(
    body: bytes, start: int, dtype: np.dtype[Any], width: int, size: int
) -> tuple[NDArray[Any], int]:
    full = dtype.itemsize * 8
    end = start + -(-size * width // 8)
    if end > len(body) or not 0 < width <= full or (dtype.kind != "u" and width != full):
        raise PayloadError(f"message claims {size} values of {width} bits in too few bytes")
    if width == full:
        return np.frombuffer(body, dtype, size, start), end
    packed = np.frombuffer(body, np.uint8, end - start, start)
    bits = np.unpackbits(packed, count=size * width, bitorder="little").reshape(size, width)
    raw = np.zeros((size, full), np.uint8)
    raw[:, :width] = bits
    return np.packbits(raw, axis=1, bitorder="little").view(dtype).reshape(size), end
