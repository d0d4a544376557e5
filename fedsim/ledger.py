"""What was sent: totals per round and over the run, in both directions and by part."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fedsim.engine.blocks import Report


class Ledger:
    """Adds up encoded bytes; nothing here is estimated.

    >>> ledger = Ledger()
    >>> ledger.add([Report(client=0, up_bytes=10, down_bytes=30)])
    >>> ledger.close_round()["comm/down_bytes_cum"]
    30
    """

    def __init__(self) -> None:
        self._round = {"up": 0, "down": 0}
        self._run = {"up": 0, "down": 0}

    def add(self, reports: Iterable[Report]) -> None:
        """Count what clients of the current round sent and received."""
        for report in reports:
            self._round["up"] += report.up_bytes
            self._round["down"] += report.down_bytes

    def close_round(self) -> dict[str, int]:
        """The round's bytes and the running totals, under run-folder keys."""
        record = {}
        for way, count in self._round.items():
            self._run[way] += count
            record[f"comm/{way}_bytes"] = count
            record[f"comm/{way}_bytes_cum"] = self._run[way]
        self._round = {"up": 0, "down": 0}
        return record

    @property
    def totals(self) -> dict[str, int]:
        """Bytes of the run so far, for a checkpoint."""
        return dict(self._run)

    def restore(self, totals: Mapping[str, int]) -> None:
        """Go on from the totals of a checkpoint."""
        self._run.update(totals)
