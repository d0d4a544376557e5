"""What the server sends: encoded broadcasts, and what clients that missed some are sent besides.

Without error feedback a broadcast is the encoded weights. With it (EF21-P: K. Gruntkowska, A.
Tyurin, P. Richtarik, "EF21-P and Friends", ICML 2023, https://arxiv.org/abs/2209.15218; the primal
form of EF21-BC) server and clients hold a reference W, and a broadcast is C(x - W), which both add
to W. A client that missed broadcasts, or did not answer to them, needs them, too, or W as a whole,
whichever is shorter; a new client needs W. Either is charged to the part ``catchup``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedsim import wire
from fedsim.arrays import Arrays, num_bytes
from fedsim.chain import Compensated, memory_of
from fedsim.codec import HEADER, SERVER, Codec, Sender
from fedsim.engine.blocks import Broadcast, Report
from fedsim.errors import PluginError
from fedsim.seeds import Seeds


class Downlink:
    """The server's end of the way down.

    Args:
        codec: How broadcasts are encoded.
        seeds: The run's streams.
        by_layer: Also count bytes by array.
    """

    def __init__(self, codec: Codec, seeds: Seeds, by_layer: bool = False) -> None:
        self.codec, self.seeds, self.by_layer = codec, seeds, by_layer
        self._state: dict[str, Any] = {}
        self._sent = [0]  # bytes of all numbered broadcasts before each one, and after the last
        self._packed = 0
        self._seen: dict[int, int] = {}  # last broadcast that a client answered, with feedback
        self._asked: dict[int, int] = {}  # last one that it was sent

    def encode(self, arrays: Arrays, plan: bytes = b"", number: int | None = None) -> Broadcast:
        """A broadcast of weights; its random draws depend on its number, the next by default.

        One with a number of its own, a version of the model, may be encoded once more, and does not
        count among the others.
        """
        counts = number is None
        key = f"b{len(self._sent)}" if counts else f"v{number}"
        number = len(self._sent) if number is None else number
        sender = Sender(self.seeds, number, SERVER)
        base = self._reference(arrays)
        payload = self.codec.encode(arrays, self._state, sender)
        data = np.frombuffer(payload.data, dtype=np.uint8)
        parts = {**payload.parts, **({"plan": len(plan)} if plan else {})}
        if counts:
            self._sent.append(self._sent[-1] + payload.num_bytes)
        layers = payload.by_array() if self.by_layer else {}
        return Broadcast(key, data, parts, base, plan, number, layers)

    def pack(self, vectors: Arrays) -> Broadcast:
        """A broadcast of vectors that are not shaped like the model: no draws, no number."""
        self._packed += 1
        payload = wire.pack(vectors)
        data = np.frombuffer(payload.data, dtype=np.uint8)
        return Broadcast(f"p{self._packed}", data, payload.parts, packed=True)

    def charge(self, report: Report, broadcast: Broadcast) -> None:
        """Enter into a client's report what it was sent, with what it needed besides."""
        parts, report.down_layers = dict(broadcast.parts), broadcast.layers
        if broadcast.base is not None:
            last = self._seen.get(report.client)
            self._asked[report.client] = broadcast.number
            whole = HEADER.size + num_bytes(broadcast.base.values())
            missed = 0 if last is None else self._sent[broadcast.number - 1] - self._sent[last]
            missed = max(missed, 0)  # the same broadcast once more
            if last is None or missed + len(broadcast.payload) > whole:
                parts = {k: n for k, n in parts.items() if k == "plan"} | {"catchup": whole}
                report.down_layers = {}
            elif missed:
                parts["catchup"] = missed
        report.down_parts, report.down_bytes = parts, sum(parts.values())

    def heard(self, client: int) -> None:
        """The client has answered to its last broadcast: it has it."""
        if client in self._asked:
            self._seen[client] = self._asked.pop(client)

    def residual(self, arrays: Arrays) -> float | None:
        """How far the receivers' copy is from the weights last sent; None without feedback."""
        return self.codec.residual(arrays, self._state)

    def _reference(self, arrays: Arrays) -> Arrays | None:
        if not isinstance(self.codec, Compensated):
            return None
        if not self._state:
            self._state = {f"feedback/estimate/{name}": x for name, x in arrays.items()}
        return memory_of(self._state, arrays)["estimate"]

    @property
    def memory(self) -> dict[str, Any]:
        """All of it, for a checkpoint."""
        return {"state": self._state, "sent": np.array(self._sent), "seen": self._seen}

    def restore(self, memory: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._state = dict(memory["state"])
        self._sent = memory["sent"].tolist()
        self._seen = dict(memory["seen"])


def one_content_only(count: int) -> PluginError:
    """The refusal of several contents where the server keeps one state for all clients."""
    return PluginError(
        "the codec keeps one state for all clients, and the strategy sends "
        f"{count} different contents in a round",
        key=("codec",),
        hint="Use error_feedback: {name: ef21, server: mirrors} up, none down, no lgreco",
    )
