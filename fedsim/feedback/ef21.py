"""EF21: each sender compresses the change against what the server already believes.

    send c = C(u - g);  g <- g + c                  g = 0 at first
    server: mean of g over all clients it has heard of (EF21-PP), or over the cohort
    with momentum a < 1 (EF21-SGDM): v <- (1 - a) v + a u in place of u

P. Richtarik, I. Sokolov, I. Fatkhullin, "EF21: A New, Simpler, Theoretically Better, and
Practically Faster Error Feedback", NeurIPS 2021, https://arxiv.org/abs/2106.05203; partial
participation: I. Fatkhullin et al., "EF21 with Bells & Whistles", 2021,
https://arxiv.org/abs/2110.03294; momentum: I. Fatkhullin, A. Tyurin, P. Richtarik, "Momentum
Provably Improves Error Feedback!", NeurIPS 2023, https://arxiv.org/abs/2305.15155. Updates take the
place of gradients, and the strategy's step that of gamma. A client enters the server's mean with
its first message (the paper: all in round 0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from fedsim.arrays import Arrays, add, scale, subtract
from fedsim.codec import Compress, Feedback, Memory, Message, Sender


@dataclass(frozen=True, kw_only=True)
class EF21(Feedback):
    """Compressed differences.

    Args:
        server: ``mean``: the server steps with the mean estimate of all clients it has heard of,
            absent ones included, and keeps only that. ``mirrors``: it keeps every client's estimate
            and averages those of the cohort; any strategy can aggregate these.
        momentum: Weight of the new update in the average of updates that is sent; 1 is plain EF21.
    """

    for_weights: ClassVar[bool] = True

    server: Literal["mean", "mirrors"] = "mean"
    momentum: Annotated[float, Field(gt=0, le=1)] = 1.0

    def send(
        self, update: Arrays, memory: Memory, compress: Compress, sender: Sender, alpha: float
    ) -> Message:
        """Compress the difference and add what was decoded to the estimate."""
        if self.momentum < 1:
            if "average" in memory:
                old = scale(memory["average"], 1 - self.momentum)
                update = add(old, scale(update, self.momentum))
            memory["average"] = update
        if "estimate" not in memory:
            message = compress(update)
            memory["estimate"] = message.decoded
        else:
            message = compress(subtract(update, memory["estimate"]))
            memory["estimate"] = add(memory["estimate"], message.decoded)
        return message
