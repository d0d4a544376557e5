"""No compression: raw values behind the payload header."""

from __future__ import annotations

from typing import ClassVar

from fedsim.arrays import Arrays
from fedsim.codec import Codec, Reader, Rest, Sender, Stage, Writer


class NoCodec(Codec):
    """Keeps every bit: ``decode(encode(x)) == x``.

    >>> import numpy as np
    >>> x = {"w": np.float32([1.5, -2.0])}
    >>> payload = NoCodec().encode(x, {})
    >>> payload.num_bytes, NoCodec().decode(payload, like=x)["w"].tolist()
    (28, [1.5, -2.0])
    """

    stage: ClassVar[Stage] = "whole"
    lossless = True
    contraction = True
    unbiased = True
    linear = True

    def pack(self, arrays: Arrays, out: Writer, state: Arrays, sender: Sender) -> Arrays:
        """Leave all values as they are."""
        return arrays

    def unpack(self, body: Reader, like: Arrays, rest: Rest) -> Arrays:
        """Read-only views of the values inside the payload."""
        return rest(like)

    def alpha(self, like: Arrays) -> float:
        """Nothing is lost."""
        return 1.0
