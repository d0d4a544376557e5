"""EF21-W: EF21 with clients weighted by their smoothness.

    r_i = L_i / mean L;  send c = C(u / r_i - g);  g <- g + c;  server adds r_i c

P. Richtarik, E. Gasanov, K. Burlachenko, "Error Feedback Reloaded: From Quadratic to Arithmetic
Mean of Smoothness Constants", ICLR 2024, https://arxiv.org/abs/2402.10774. With the strategy's
weights p_i this is w_i = p_i L_i / sum_j p_j L_j of the paper when all p_i are equal. The
admissible step grows from ``1 / (L + L_QM xi)`` to ``1 / (L + L_AM xi)``. For codecs that are
homogeneous and deterministic (topk, sign) the messages are those of EF21 up to the factor; the
larger step is what one gains. Constants below 1 % of their mean count as 1 %. The factor travels: 4
bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import PositiveFloat

from fedsim.arrays import Arrays, add, scale, subtract
from fedsim.codec import Compress, Feedback, Memory, Message, Reader, Rest, Sender, Writer
from fedsim.errors import PluginError

FLOOR = 0.01


@dataclass(frozen=True, kw_only=True)
class EF21W(Feedback):
    """Compressed differences on a scale of each client's own.

    Args:
        smoothness: Smoothness constant of each client, by index; none is EF21.
        server: As for ``ef21``.
    """

    smoothness: tuple[PositiveFloat, ...] = ()
    server: Literal["mean", "mirrors"] = "mean"

    def send(
        self, update: Arrays, memory: Memory, compress: Compress, sender: Sender, alpha: float
    ) -> Message:
        """Compress the scaled difference; the estimate is kept as the server sees it."""
        ratio = self._ratio(sender.client)
        estimate = memory.get("estimate")
        target = update if estimate is None else subtract(update, estimate)
        message = compress(scale(target, 1 / float(ratio)))
        change = scale(message.decoded, float(ratio))
        memory["estimate"] = change if estimate is None else add(estimate, change)
        out = Writer()
        out.put(np.array([ratio], "<f4"), "scales")
        out.append(message.out)
        return Message(out, change)

    def receive(self, body: Reader, decode: Rest, like: Arrays, estimate: Arrays) -> Arrays:
        """Add the message times the sender's factor."""
        ratio = float(body.array("<f4", 1)[0])
        return add(estimate, scale(decode(like), ratio))

    def _ratio(self, client: int) -> np.float32:
        if not self.smoothness:
            return np.float32(1)
        if not 0 <= client < len(self.smoothness):
            raise PluginError(
                f"ef21w knows no smoothness of client {client}",
                key=("codec",),
                hint="Give one number for each client",
            )
        constants = np.asarray(self.smoothness)
        return np.float32(max(constants[client] / constants.mean(), FLOOR))
