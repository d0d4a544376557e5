"""What was sent: totals per round and over the run, in both directions and by part."""

from __future__ import annotations

from collections.abc import Iterable

from fedsim.engine.blocks import Report


class Ledger:
    """Adds up encoded bytes; nothing here is estimated.

    >>> ledger = Ledger()
    >>> ledger.add([Report(client=0, up_bytes=10, down_bytes=30)])["comm/down_bytes_cum"]
    30
    """

    def __init__(self) -> None:
        self.up_bytes = 0
        self.down_bytes = 0

    def add(self, reports: Iterable[Report]) -> dict[str, int]:
        """Count one round; returns its bytes and the running totals under run-folder keys."""
        reports = list(reports)
        up = sum(r.up_bytes for r in reports)
        down = sum(r.down_bytes for r in reports)
        self.up_bytes += up
        self.down_bytes += down
        return {
            "comm/up_bytes": up,
            "comm/down_bytes": down,
            "comm/up_bytes_cum": self.up_bytes,
            "comm/down_bytes_cum": self.down_bytes,
        }
