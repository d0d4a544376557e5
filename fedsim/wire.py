"""Messages that are not shaped like the model: named vectors of any length, packed and checked.

``seeds`` and ``projection`` methods and their strategies exchange a few vectors whose lengths
differ from message to message. The payload describes itself: behind the common header, each vector
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
from fedsim.codec import Codec, Payload, Reader, Rest, Sender, Writer
from fedsim.errors import ClientError, PayloadError
from fedsim.partners import PACKED_KINDS
from fedsim.payload import unframe

DTYPES = ("u1", "u2", "u4", "u8", "f2", "f4", "f8")
MAX_VECTORS = 16
MAX_NAME = 32
_HEAD = struct.Struct("<BBI")  # dtype, width in bits, count; the name and its length come before


class Wire(Codec):
    """Packs named vectors; what comes back is equal, dtypes included.

    >>> arrays = {"seeds": np.uint16([3, 4095]), "scalars": np.float32([0.5, -2.0])}
    >>> payload = Wire().encode(arrays, {})
    >>> payload.num_bytes, Wire().decode(payload, {})["seeds"].tolist()
    (58, [3, 4095])
    """

    lossless = True
    contraction = True
    unbiased = True

    def pack(self, arrays: Arrays, out: Writer, state: Arrays, sender: Sender) -> Arrays:
        """Write the vectors in their order; nothing is left."""
        out.put(bytes([len(arrays)]), "header")
        for name, x in arrays.items():
            label, width = name.encode(), _width(x)
            out.put(bytes([len(label)]) + label + _HEAD.pack(_code(x), width, x.size), "header")
            out.put(_pack(x, width), "indices" if x.dtype.kind == "u" else "values")
        return {}

    def unpack(self, body: Reader, like: Arrays, rest: Rest) -> Arrays:
        """Read what the bytes say; ``like`` is not looked at."""
        (count,) = body.take(1)
        if count > MAX_VECTORS:
            raise PayloadError(f"payload claims {count} vectors; at most {MAX_VECTORS} are sent")
        arrays: Arrays = {}
        for _ in range(count):
            (length,) = body.take(1)
            name = _text(body.take(length))
            code, width, size = _HEAD.unpack(body.take(_HEAD.size))
            if name in arrays or not 0 < length <= MAX_NAME or code >= len(DTYPES):
                raise PayloadError(f"payload has a vector {name!r} twice or of an unknown kind")
            arrays[name] = _unpack(body, np.dtype("<" + DTYPES[code]), width, size)
        return arrays

    def encode(self, arrays: Arrays, state: Arrays, sender: Sender | None = None) -> Payload:
        """Pack the vectors."""
        out = Writer()
        self.pack(arrays, out, state, sender or Sender())
        return out.payload(self.signature, {})

    def decode(self, payload: Payload, like: Arrays) -> Arrays:
        """Unpack what the bytes say; ``like`` is not looked at."""
        body = Reader(unframe(self.signature, payload, {}))
        arrays = self.unpack(body, {}, body.arrays)
        body.finish()
        return arrays


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


def _text(data: memoryview) -> str:
    try:
        return bytes(data).decode()
    except UnicodeDecodeError:
        raise PayloadError("payload has a vector whose name is no text") from None


def _unpack(body: Reader, dtype: np.dtype[Any], width: int, size: int) -> NDArray[Any]:
    full = dtype.itemsize * 8
    if not 0 < width <= full or (dtype.kind != "u" and width != full):
        raise PayloadError(f"payload claims values of {width} bits")
    data = body.take(-(-size * width // 8))
    if width == full:
        return np.frombuffer(data, dtype, size)
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=size * width, bitorder="little")
    raw = np.zeros((size, full), np.uint8)
    raw[:, :width] = bits.reshape(size, width)
    return np.packbits(raw, axis=1, bitorder="little").view(dtype).reshape(size)
