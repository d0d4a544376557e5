"""What the server remembers of its clients' updates when error feedback sends only changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedsim.arrays import Arrays
from fedsim.codec import Codec, Payload
from fedsim.engine.blocks import Block, BlockResult
from fedsim.engine.checks import decode_change
from fedsim.engine.messages import reject
from fedsim.errors import PayloadError


class ClientMean:
    """Mean of what the server believes to be the update of every client it has heard of.

    This is all that EF21 needs of the server: messages change the sum, absent clients stay in it.
    Sums are kept in float64, for nothing ever corrects their rounding.

    >>> mean = ClientMean()
    >>> mean.add({"w": np.float32([4.0])}, weight=1.0, new_weight=1.0)
    >>> mean.add({"w": np.float32([1.0])}, weight=3.0, new_weight=3.0)
    >>> mean.add({"w": np.float32([-1.0])}, weight=3.0, new_weight=0.0)
    >>> mean.result({"w": np.zeros(1, np.float32)})["w"].tolist()
    [1.0]
    """

    def __init__(self) -> None:
        self._sum: Arrays = {}
        self._weight = 0.0

    def take(self, block: Block, result: BlockResult, codec: Codec, like: Arrays) -> None:
        """Bring the mean up to date with the changes of a block."""
        good = [r for r in result.reports if r.status == "ok"]
        new = {r.client for r in good if not block.residual(r.client)}
        if block.reduce and good:
            assert result.mean is not None
            total = sum(r.num_examples for r in good)
            first = sum(r.num_examples for r in good if r.client in new)
            self.add(result.mean, total, first)
            return
        whole = []
        for report, data in zip(good, result.payloads, strict=True):
            try:
                change = decode_change(codec, Payload(data), like)
            except PayloadError as problem:
                reject(report, block.server_round, problem)
                continue
            weight = report.num_examples
            self.add(change, weight, weight if report.client in new else 0)
            whole.append(data)
        result.payloads = whole

    def add(self, change: Arrays, weight: float, new_weight: float) -> None:
        """Count a mean change of clients with ``weight`` in all, of which ``new_weight`` is new."""
        for name, x in change.items():
            term = weight * x.astype(np.float64)
            self._sum[name] = self._sum[name] + term if name in self._sum else term
        self._weight += new_weight

    def result(self, like: Arrays) -> Arrays:
        """The mean, in the types of ``like``; empty before any client was heard of."""
        if not self._weight:
            return {}
        return {n: (self._sum[n] / self._weight).astype(x.dtype) for n, x in like.items()}

    @property
    def memory(self) -> dict[str, Any]:
        """All of it, for a checkpoint."""
        return {"sum": dict(self._sum), "weight": self._weight}

    def restore(self, memory: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._sum, self._weight = dict(memory["sum"]), memory["weight"]
