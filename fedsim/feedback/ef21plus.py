"""EF21+: the better of a compressed update and a compressed difference.

    b = C(u), m = g + C(u - g);  g <- whichever is nearer to u;  one byte says which

P. Richtarik, I. Sokolov, I. Fatkhullin, "EF21: A New, Simpler, Theoretically Better, and
Practically Faster Error Feedback", NeurIPS 2021, https://arxiv.org/abs/2106.05203, section 3.5. For
deterministic codecs. A message may replace a client's estimate, so the server must keep all of
them (``mirrors``). The paper counts one bit for the choice; it is a byte here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedsim.arrays import Arrays, add, subtract
from fedsim.codec import Compress, Feedback, Memory, Message, Reader, Rest, Sender, Writer


@dataclass(frozen=True, kw_only=True)
class EF21Plus(Feedback):
    """Compressed differences, or compressed updates where these are better.

    Args:
        server: Always ``mirrors``: the server keeps every client's estimate.
    """

    server: Literal["mirrors"] = "mirrors"

    def send(
        self, update: Arrays, memory: Memory, compress: Compress, sender: Sender, alpha: float
    ) -> Message:
        """Compress both and send the nearer one."""
        message, is_change = compress(update), 0
        estimate = message.decoded
        if "estimate" in memory:
            change = compress(subtract(update, memory["estimate"]))
            changed = add(memory["estimate"], change.decoded)
            if _distance(changed, update) < _distance(estimate, update):
                message, estimate, is_change = change, changed, 1
        memory["estimate"] = estimate
        out = Writer()
        out.number(is_change)
        out.append(message.out)
        return Message(out, message.decoded)

    def receive(self, body: Reader, decode: Rest, like: Arrays, estimate: Arrays) -> Arrays:
        """Add a change, or start anew."""
        is_change = body.number(1)
        decoded = decode(like)
        return add(estimate, decoded) if is_change else decoded


def _distance(a: Arrays, b: Arrays) -> float:
    return sum(float(np.square(a[n] - b[n], dtype=np.float64).sum()) for n in a)
