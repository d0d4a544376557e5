"""EControl: EF21 with an error term whose strength is throttled.

    send c = C(eta e + u - h);  h <- h + c;  e <- e + u - h  (the new h)
    server: mean of h, as for EF21

Y. Gao, R. Islamov, S. U. Stich, "EControl: Fast Distributed Optimization with Compression and Error
Control", ICLR 2024, https://arxiv.org/abs/2311.05645. ``eta = 0`` is EF21; ``eta = 1`` with a
frozen h is EF14. The paper knows full participation only: what absent clients mean here is our
choice, as for EF21. h and e start at 0. eta is the codec's alpha / 2 by default, also our choice:
theory asks for far less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from fedsim.arrays import Arrays, add, scale, subtract
from fedsim.codec import Compress, Feedback, Memory, Message, Sender
from fedsim.errors import PluginError


@dataclass(frozen=True, kw_only=True)
class EControl(Feedback):
    """Compressed differences with controlled error.

    Args:
        eta: Strength of the error term; half the codec's contraction by default.
        server: As for ``ef21``.
    """

    eta: Annotated[float, Field(ge=0, le=1)] | None = None
    server: Literal["mean", "mirrors"] = "mean"

    def send(
        self, update: Arrays, memory: Memory, compress: Compress, sender: Sender, alpha: float
    ) -> Message:
        """Compress difference and throttled error; bring both up to date."""
        eta = alpha / 2 if self.eta is None else self.eta
        if self.eta is None and not alpha:
            raise PluginError(
                "econtrol does not know how much this codec contracts",
                key=("codec",),
                hint="Give eta, for example 0.05",
            )
        target = update
        if memory:
            target = add(subtract(update, memory["estimate"]), scale(memory["error"], eta))
        message = compress(target)
        estimate = message.decoded
        if memory:
            estimate = add(memory["estimate"], estimate)
        error = subtract(update, estimate)
        memory["error"] = add(memory["error"], error) if memory else error
        memory["estimate"] = estimate
        return message
