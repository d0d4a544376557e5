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
from numpy.typing import NDArray

from fedsim.arrays import Arrays, non_finite
from fedsim.bitstrings import num_packed, pack_bits, unpack_bits
from fedsim.codec import Payload, Reader, Writer, sensible
from fedsim.errors import ClientError, PayloadError
from fedsim.partners import PACKED_KINDS
from fedsim.payload import Frame

DTYPES = ("u1", "u2", "u4", "u8", "f2", "f4", "f8")
MAX_VECTORS = 16
MAX_NAME = 32
VECTORS = Frame(struct.Struct("<2sB3xHII"), b"fw", 2)
_HEAD = struct.Struct("<BBI")  # dtype, width in bits, count; the name and its length come before


def pack(arrays: Arrays) -> Payload:
    """Pack vectors in their order.

    >>> arrays = {"seeds": np.uint16([3, 4095]), "scalars": np.float32([0.5, -2.0])}
    >>> payload = pack(arrays)
    >>> payload.num_bytes, unpack(payload)["seeds"].tolist()
    (54, [3, 4095])
    """
    out = Writer()
    out.put(bytes([len(arrays)]), "header")
    for name, x in arrays.items():
        label, is_index, width = name.encode(), x.dtype.kind == "u", _width(x)
        out.put(bytes([len(label)]) + label, "header")
        out.put(_HEAD.pack(DTYPES.index(x.dtype.str[1:]), width, x.size), "header")
        whole = width == 8 * x.dtype.itemsize
        data = x.astype(x.dtype.newbyteorder("<"), copy=False) if whole else pack_bits(x, width)
        out.put(data, "indices" if is_index else "values")
    header = VECTORS.header.size + out.parts["header"]
    return Payload(VECTORS.close(out.chunks), {**out.parts, "header": header})


def unpack(payload: Payload) -> Arrays:
    """The vectors of a payload, dtypes included.

    Raises:
        PayloadError: The bytes are cut, altered, or no message of this form.
    """
    body = Reader(VECTORS.open(payload.data)[1])
    arrays: Arrays = {}
    with sensible(body):
        for _ in range(_byte(body, MAX_VECTORS)):
            name = str(body.take(_byte(body, MAX_NAME)), "utf-8")
            if not name or name in arrays:
                raise PayloadError(f"message has a vector {name!r} twice or without a name")
            arrays[name] = _read(body)
    return arrays


def _byte(body: Reader, limit: int) -> int:
    value = body.take(1)[0]
    if value > limit:
        raise PayloadError(f"message claims {value} where at most {limit} is possible")
    return value


def _read(body: Reader) -> NDArray[Any]:
    code, width, count = _HEAD.unpack(body.take(_HEAD.size))
    dtype = np.dtype("<" + DTYPES[code])
    whole = 8 * dtype.itemsize
    if not 0 < width <= whole or (dtype.kind != "u" and width != whole):
        raise PayloadError(f"message claims {count} values of {width} bits in {dtype}")
    if width == whole:
        return body.array(dtype, count)
    data = body.array(np.uint8, num_packed(count, width))
    return unpack_bits(data, count, width).astype(dtype)


def _width(x: NDArray[Any]) -> int:
    """Bits of a value: what the largest unsigned integer needs, or the dtype's own."""
    if x.dtype.kind != "u":
        return x.dtype.itemsize * 8
    return max(1, int(x.max()).bit_length()) if x.size else 1


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
