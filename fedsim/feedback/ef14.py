"""EF14: what compression lost is added to the next update.

    p = e + u;  send c = C(p);  e <- p - c          the server takes c for the update

F. Seide, H. Fu, J. Droppo, G. Li, D. Yu, "1-Bit Stochastic Gradient Descent and its Application to
Data-Parallel Distributed Training of Speech DNNs", Interspeech 2014; S. U. Stich, J.-B. Cordonnier,
M. Jaggi, "Sparsified SGD with Memory", NeurIPS 2018, https://arxiv.org/abs/1809.07599. With clients
that are absent now and then, their error is applied late (X. Li, P. Li, "Analysis of Error Feedback
in Federated Non-Convex Optimization with Biased Compression", ICML 2023,
https://arxiv.org/abs/2211.14292).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedsim.arrays import Arrays, add, subtract
from fedsim.codec import Compress, Feedback, Memory, Message, Sender


@dataclass(frozen=True, kw_only=True)
class EF14(Feedback):
    """Classic error feedback; the server keeps nothing."""

    differences: ClassVar[bool] = False

    def send(
        self, update: Arrays, memory: Memory, compress: Compress, sender: Sender, alpha: float
    ) -> Message:
        """Compress update and error together; the rest is the new error."""
        target = add(memory["error"], update) if "error" in memory else update
        message = compress(target)
        memory["error"] = subtract(target, message.decoded)
        return message
