"""No compression: raw values behind the payload header."""

from __future__ import annotations

from typing import ClassVar

from fedsim.arrays import Arrays
from fedsim.codec import Codec, Payload, frame, pack, unframe, unpack


class NoCodec(Codec):
    """Keeps every bit: ``decode(encode(x)) == x``.

    >>> import numpy as np
    >>> x = {"w": np.float32([1.5, -2.0])}
    >>> payload = NoCodec().encode(x, {})
    >>> payload.num_bytes, NoCodec().decode(payload, like=x)["w"].tolist()
    (28, [1.5, -2.0])
    """

    codec_id: ClassVar[int] = 0
    contraction: ClassVar[bool] = True
    unbiased: ClassVar[bool] = True
    linear: ClassVar[bool] = True

    def encode(self, arrays: Arrays, state: Arrays) -> Payload:
        """Concatenate the raw values."""
        return frame(self.codec_id, arrays, pack(arrays.values()))

    def decode(self, payload: Payload, like: Arrays) -> Arrays:
        """Read-only views of the values inside the payload."""
        return unpack(unframe(self.codec_id, payload, like), like)
