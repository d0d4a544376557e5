"""Which server update each client knows, for strategies that send only what a client missed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import Message


@dataclass(frozen=True)
class CatchUp:
    """Server updates by client, as far as answers tell: who does not answer may have got nothing.

    Args:
        state: The strategy's state; ``seen`` and ``seen_before`` are kept in it.
    """

    state: dict[str, Any]

    def since(self, nodes: Sequence[int], updates: int) -> dict[int, int]:
        """Which update each client knew; from now on it counts as knowing the newest.

        >>> knowledge = CatchUp({"seen": {7: 2}})
        >>> knowledge.since([7, 8], updates=5), knowledge.since([7, 8], updates=6)
        ({7: 2, 8: 0}, {7: 5, 8: 5})
        """
        seen: dict[int, int] = self.state.setdefault("seen", {})
        before = {node: seen.get(node, 0) for node in nodes}
        self.state["seen_before"] = before
        seen |= dict.fromkeys(nodes, updates)
        return before

    def answered(self, replies: Iterable[Message]) -> Iterator[Message]:
        """Pass replies on; who failed knows no more than before."""
        before: dict[int, int] = self.state.get("seen_before", {})
        for reply in replies:
            node = reply.metadata.src_node_id
            if reply.has_error() and node in before:
                self.state["seen"][node] = before[node]
            yield reply
