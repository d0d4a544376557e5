"""EF21-W: EF21 with clients weighted by their smoothness.

    r_i = L_i / mean L;  send c = C(u / r_i - g);  g <- g + c;  server adds r_i c

P. Richtarik, E. Gasanov, K. Burlachenko, "Error Feedback Reloaded: From Quadratic to Arithmetic
Mean of Smoothness Constants", ICLR 2024, https://arxiv.org/abs/2402.10774. With the strategy's
weights p_i this is w_i = p_i L_i / sum_j p_j L_j of the paper when all p_i are equal. The
admissible step grows from ``1 / (L + L_QM xi)`` to ``1 / (L + L_AM xi)``. For codecs that are
homogeneous and deterministic (topk, sign) the messages are those of EF21 up to the factor; the
larger step is what one gains. Constants below 1 % of their mean count as 1 %. The factor travels: 4
bytes.

With ``power_iterations`` a client measures L_i itself, on the Hessian of its loss where it first
takes part, and sends it in place of r_i: clients do not know the mean, and a common factor of all
r_i is nothing to a codec whose error is in proportion to what it encodes. The work counts as the
device's. The paper takes L_i for known; measuring it is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import NonNegativeInt, PositiveFloat

from fedsim.arrays import Arrays, add, scale, subtract
from fedsim.codec import Compress, Feedback, Memory, Message, Reader, Rest, Sender, Writer
from fedsim.curvature import largest_curvature
from fedsim.errors import PluginError

FLOOR = 0.01
LEAST = 1e-6
"""A measured constant that is smaller, as of a loss without any slope, counts as this."""


@dataclass(frozen=True, kw_only=True)
class EF21W(Feedback):
    """Compressed differences on a scale of each client's own.

    Args:
        smoothness: Smoothness constant of each client, by index; none is EF21.
        power_iterations: Instead, how many steps a client takes to measure its own, at the price of
            two gradients over all its rows each; 10 give two or three digits.
        server: As for ``ef21``.
    """

    smoothness: tuple[PositiveFloat, ...] = ()
    power_iterations: NonNegativeInt = 0
    server: Literal["mean", "mirrors"] = "mean"

    def __post_init__(self) -> None:
        if self.smoothness and self.power_iterations:
            raise PluginError(
                "give smoothness or power_iterations, never both", key=("power_iterations",)
            )

    def send(
        self, update: Arrays, memory: Memory, compress: Compress, sender: Sender, alpha: float
    ) -> Message:
        """Compress the scaled difference; the estimate is kept as the server sees it."""
        ratio = self._measured(memory, sender) if self.power_iterations else self._ratio(sender)
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

    def _measured(self, memory: Memory, sender: Sender) -> np.float32:
        """The own constant, measured once: it stays in the memory, beside every array."""
        if "smoothness" in memory:
            return next(np.float32(x[0]) for x in memory["smoothness"].values())
        if sender.local is None:
            raise PluginError(
                "ef21w can measure the smoothness only of clients that train by fedsim's methods",
                key=("codec",),
                hint="Give smoothness, one number for each client",
            )
        local, rng = sender.local, sender.rng("smoothness")
        found = largest_curvature(local.gradient, local.weights, self.power_iterations, rng)
        ratio = np.float32(max(found, LEAST))
        memory["smoothness"] = {name: np.array([ratio]) for name in local.weights}
        return ratio

    def _ratio(self, sender: Sender) -> np.float32:
        client = sender.client
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
