"""What runs reached and what it cost, as rows and groups of rows.

Runs whose scenarios differ in nothing but the seed form a group; a group reports mean and sample
standard deviation, with the number of seeds behind them. ``compare`` shows these to people.
"""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from fedsim.differences import differing, flatten, group, labels, shown
from fedsim.results import Run

HEAD_KEYS = re.compile(r"name|seeds?(\.\d+)?|strategy\.name|codec(\.(up|down))?(\.\d+\.name)?")
"""Scenario keys that tables show in columns of their own."""


@dataclass(frozen=True)
class Row:
    """One run. Numbers are exact; None is what was not measured.

    Attributes:
        label: Of the run's group; tells apart runs of one name.
        rounds: Number of the last finished round.
        metric: Key of the metric that the run is judged by, and ``mode``, its better direction.
        up_bytes: Of all clients and rounds; likewise ``down_bytes``, ``energy_j`` and times.
        memory_bytes: Peak of the largest process of the simulation.
        epsilon: Privacy spent in the end.
        failed_clients: Client failures, over all rounds.
        reason: Why the run failed, empty otherwise.
        options: Values of the scenario keys in which the runs of the table differ.
    """

    label: str
    name: str
    strategy: str
    codec: str
    seed: int
    rounds: int | None
    metric: str
    mode: str
    best: float | None
    best_round: int | None
    final: float | None
    up_bytes: int | None
    down_bytes: int | None
    virtual_s: float | None
    energy_j: float | None
    wall_s: float | None
    memory_bytes: int | None
    epsilon: float | None
    failed_clients: int | None
    status: str
    reason: str
    path: str
    options: dict[str, str]


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of ``n`` values; ``sd`` is None for fewer than two."""

    n: int
    mean: float
    sd: float | None


@dataclass(frozen=True)
class Group:
    """Rows that differ only in their seed.

    Attributes:
        spreads: By name of a row's number, over the rows that have it.
    """

    label: str
    rows: tuple[Row, ...]
    spreads: dict[str, Spread]

    @property
    def status(self) -> str:
        """``done``, or how many runs are in which state."""
        counts = Counter(row.status for row in self.rows)
        return ", ".join(f"{n} {s}" if len(counts) > 1 else s for s, n in counts.items())


@dataclass(frozen=True)
class Table:
    """All rows, in the order of the runs, and their groups.

    Attributes:
        options: Scenario keys in which the runs differ, apart from those with own columns.
    """

    rows: tuple[Row, ...]
    groups: tuple[Group, ...]
    options: tuple[str, ...]


NUMBERS = (
    "best",
    "final",
    "up_bytes",
    "down_bytes",
    "virtual_s",
    "energy_j",
    "wall_s",
    "memory_bytes",
    "epsilon",
)
"""The numbers of a row that groups average."""


def table(runs: Sequence[Run]) -> Table:
    """Compare runs."""
    flat = [flatten(run.scenario) for run in runs]
    keys = tuple(key for key in differing(flat) if not HEAD_KEYS.fullmatch(key))
    grouped = group(runs)
    names = labels(grouped)
    label = {run.path: name for name, g in zip(names, grouped, strict=True) for run in g}
    rows = {
        run.path: _row(run, label[run.path], {key: shown(scenario, key) for key in keys})
        for run, scenario in zip(runs, flat, strict=True)
    }
    groups = [
        _group(name, tuple(rows[run.path] for run in members))
        for name, members in zip(names, grouped, strict=True)
    ]
    return Table(tuple(rows.values()), tuple(groups), keys)


def _row(run: Run, label: str, options: dict[str, str]) -> Row:
    overview = run.overview
    metric = overview.get("key_metric", {})
    totals = overview.get("totals", {})
    failed = overview.get("failed")
    return Row(
        label=label,
        name=run.name,
        strategy=str(overview.get("strategy", "?")),
        codec=str(overview.get("codec", "?")),
        seed=run.seed,
        rounds=overview.get("final_round"),
        metric=run.key_metric[0],
        mode=run.key_metric[1],
        best=metric.get("best"),
        best_round=metric.get("best_round"),
        final=metric.get("final"),
        up_bytes=totals.get("comm/up_bytes"),
        down_bytes=totals.get("comm/down_bytes"),
        virtual_s=totals.get("time/virtual_s"),
        energy_j=totals.get("energy/joules"),
        wall_s=totals.get("time/wall_s"),
        memory_bytes=totals.get("mem/peak_bytes") or None,
        epsilon=totals.get("privacy/epsilon"),
        failed_clients=totals.get("clients/failed"),
        status=run.status,
        reason=failed if isinstance(failed, str) else "",
        path=str(run.path),
        options=options,
    )


def _group(label: str, rows: tuple[Row, ...]) -> Group:
    columns = {name: [getattr(row, name) for row in rows] for name in NUMBERS}
    known = {name: [v for v in values if v is not None] for name, values in columns.items()}
    return Group(label, rows, {name: spread(v) for name, v in known.items() if v})


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation.

    >>> spread([1.0, 2.0, 3.0])
    Spread(n=3, mean=2.0, sd=1.0)
    """
    sd = statistics.stdev(values) if len(values) > 1 else None
    return Spread(len(values), statistics.fmean(values), sd)
