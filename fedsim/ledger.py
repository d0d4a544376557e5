"""What was sent: totals per round and over the run, in both directions and by part."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from fedsim.codec import Span
from fedsim.engine.blocks import Report


class Ledger:
    """Adds up encoded bytes; nothing here is estimated.

    Parts are ``header``, ``values``, ``indices``, ``scales``, ``seeds``, and on the way down
    ``plan`` and ``catchup`` (what clients that missed rounds are sent besides). Where a scenario
    asks for bytes by array, a part is also split, as ``comm/up_values_bytes/<array>``; the header
    of a message and what else is about no array are in the part's sum alone.

    >>> ledger = Ledger()
    >>> ledger.add([Report(client=0, up_bytes=10, up_parts={"values": 10}, down_bytes=30)])
    >>> record = ledger.close_round()
    >>> record["comm/down_bytes_cum"], record["comm/up_values_bytes"]
    (30, 10)
    """

    def __init__(self) -> None:
        self._round = {"up": 0, "down": 0}
        self._run = {"up": 0, "down": 0}
        self._parts: dict[tuple[str, str, str], int] = defaultdict(int)

    def add(self, reports: Iterable[Report]) -> None:
        """Count what clients of the current round sent and received."""
        for report in reports:
            self._round["up"] += report.up_bytes
            self._round["down"] += report.down_bytes
            self._count("up", report.up_parts, report.up_layers)
            self._count("down", report.down_parts, report.down_layers)

    def _count(self, way: str, parts: Mapping[str, int], layers: Mapping[Span, int]) -> None:
        for part, count in parts.items():
            self._parts[way, part, ""] += count
        if "partial" not in parts:  # what travelled of it is of unknown kind
            for (name, part), count in layers.items():
                self._parts[way, part, f"/{name}"] += count

    def close_round(self) -> dict[str, int]:
        """The round's bytes and the running totals, under run-folder keys."""
        record = {}
        for way, count in self._round.items():
            self._run[way] += count
            record[f"comm/{way}_bytes"] = count
            record[f"comm/{way}_bytes_cum"] = self._run[way]
        parts = {f"comm/{w}_{part}_bytes{name}": n for (w, part, name), n in self._parts.items()}
        record |= {key: parts[key] for key in sorted(parts)}
        self._round = {"up": 0, "down": 0}
        self._parts.clear()
        return record

    @property
    def totals(self) -> dict[str, int]:
        """Bytes of the run so far, for a checkpoint; parts are summed from the rounds."""
        return dict(self._run)

    def restore(self, totals: Mapping[str, int]) -> None:
        """Go on from the totals of a checkpoint."""
        self._run.update(totals)
