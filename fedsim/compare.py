"""Tables over runs: what each one reached, what it cost, and how its scenario differs.

Runs whose scenarios differ in nothing but the seed form a group; a group reports mean and sample
standard deviation, with the number of seeds behind them. Every function here is pure except
``print_table``.
"""

from __future__ import annotations

import re
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from fedsim.differences import DEFAULT, differing, flatten, group, labels, short_names, shown
from fedsim.records import Record, dumps
from fedsim.results import Run
from fedsim.units import MISSING, human_bytes, human_score, human_time

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

HEAD_KEYS = re.compile(r"name|seeds?(\.\d+)?|strategy\.name|codec(\.(up|down))?(\.\d+\.name)?")
"""Scenario keys that tables show in columns of their own."""


@dataclass(frozen=True)
class Row:
    """One run. Numbers are exact; None is what was not measured.

    Attributes:
        label: Of the run's group; tells apart runs of one name.
        rounds: Number of the last finished round.
        metric: Key of the metric that the run is judged by, and ``mode``, its better direction.
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
    wall_s: float | None
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

    @property
    def has_option_table(self) -> bool:
        """Whether the options are too many to be columns of the table of runs."""
        return len(self.options) > MAX_OPTIONS


Cell = tuple[str, float | str | None]
"""What people see, and what to sort by."""
NUMBERS = ("best", "final", "up_bytes", "down_bytes", "wall_s")
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
        wall_s=totals.get("time/wall_s"),
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


FORMATS: dict[str, Callable[[float | None], str]] = {
    "best": human_score,
    "final": human_score,
    "up_bytes": human_bytes,
    "down_bytes": human_bytes,
    "wall_s": human_time,
}
"""How each of ``NUMBERS`` is shown to people."""


def human_spread(name: str, value: Spread | None) -> str:
    """Mean and standard deviation of one of ``NUMBERS``.

    >>> human_spread("best", Spread(3, 0.9, 0.01))
    '0.9 ± 0.01'
    """
    if value is None:
        return MISSING
    mean = FORMATS[name](value.mean)
    if value.sd is None:
        return mean
    score = name in ("best", "final") or not value.sd
    sd = f"{value.sd:.2g}" if score else FORMATS[name](value.sd)
    return f"{mean} ± {sd}"


def to_json(compared: Table, indent: int | None = 1) -> str:
    """The table as strict JSON with exact numbers; on one line without ``indent``."""
    groups = [
        {
            "label": g.label,
            "seeds": [row.seed for row in g.rows],
            **{name: asdict(s) for name, s in g.spreads.items()},
        }
        for g in compared.groups
    ]
    record: Record = {
        "schema_version": 1,
        "options": list(compared.options),
        "runs": [asdict(row) for row in compared.rows],
        "groups": groups,
    }
    return dumps(record, indent=indent)


def print_table(compared: Table, console: Console | None = None) -> None:
    """Print the runs, and below them the groups of several seeds, as rich tables."""
    from rich.console import Console
    from rich.text import Text

    console = console or Console(width=None if sys.stdout.isatty() else 160)
    console.print(_runs_table(compared))
    for row in compared.rows:
        if row.reason:
            console.print(Text(f"{row.label}, seed {row.seed}: {row.reason}", style="red"))
    if compared.has_option_table:
        console.print(_options_table(compared))
    if any(len(g.rows) > 1 for g in compared.groups):
        console.print(_groups_table(compared))


def columns(compared: Table) -> list[str]:
    """Headings of the table of runs; ``cells`` has the values.

    The metric is named in the heading when all runs share it.
    """
    metrics = _metrics(compared)
    score = metrics.pop() if len(metrics) == 1 else "score"
    head = ["run", "strategy", "codec", "seed", "rounds", f"best {score}", f"final {score}"]
    return [
        *head,
        "up",
        "down",
        "wall time",
        "failed clients",
        "status",
    ]


def _metrics(compared: Table) -> set[str]:
    """The key metrics of the runs that have been evaluated."""
    return {row.metric for row in compared.rows if row.best is not None}


def cells(row: Row, named_metric: bool = False) -> list[Cell]:
    """The cells of a row, for each of ``columns``; ``named_metric`` adds the metric's key."""
    suffix = f" {row.metric}" if named_metric and row.best is not None else ""
    best = human_score(row.best) + (f" (round {row.best_round})" if row.best is not None else "")
    return [
        (row.label, row.label),
        (row.strategy, row.strategy),
        (row.codec, row.codec),
        (str(row.seed), row.seed),
        (MISSING if row.rounds is None else str(row.rounds), row.rounds),
        (best + suffix, row.best),
        (human_score(row.final), row.final),
        *((FORMATS[name](getattr(row, name)), getattr(row, name)) for name in NUMBERS[2:]),
        (MISSING if row.failed_clients is None else str(row.failed_clients), row.failed_clients),
        (row.status, row.status),
    ]


NUMBER_COLUMNS = ("seed", "rounds", "n", "up", "down", "wall time", "failed clients")
GROUP_COLUMNS = ("over seeds", "n", "best", "final", "up", "down", "wall time", "status")
GROUP_CAPTION = "mean ± sample standard deviation over n seeds"


def group_cells(g: Group) -> list[Cell]:
    """The same for a group, for each of ``GROUP_COLUMNS``."""
    means = {name: value.mean for name, value in g.spreads.items()}
    numbers = [(human_spread(name, g.spreads.get(name)), means.get(name)) for name in NUMBERS]
    return [(g.label, g.label), (str(len(g.rows)), len(g.rows)), *numbers, (g.status, g.status)]


def is_number(heading: str) -> bool:
    """Whether a column holds numbers, to be set flush right."""
    return heading in NUMBER_COLUMNS or heading.startswith(("best", "final"))


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


MAX_OPTIONS = 4
"""More differing options than these get a table of their own."""
FOLDABLE = ("strategy", "codec", "seed", "rounds", "failed clients", "status")
"""Columns that move to the caption when all runs agree."""


def layout(compared: Table) -> tuple[list[str], list[list[Cell]], str]:
    """Headings, cells and caption of the table of runs.

    Columns of ``FOLDABLE`` in which several runs all agree are named in the caption instead; more
    than ``MAX_OPTIONS`` differing options are left to ``option_layout``.
    """
    headings = columns(compared)
    mixed = len(_metrics(compared)) > 1
    lines = [cells(row, mixed) for row in compared.rows]
    common = {
        heading: column[0][0]
        for heading, column in zip(headings, zip(*lines, strict=True), strict=True)
        if heading in FOLDABLE and len(set(column)) == 1 and len(lines) > 1
    }
    keep = [i for i, heading in enumerate(headings) if heading not in common]
    headings, lines = [headings[i] for i in keep], [[line[i] for i in keep] for line in lines]
    if not compared.has_option_table:
        more, values = option_layout(compared)
        headings += more[1:]
        lines = [a + b[1:] for a, b in zip(lines, values, strict=True)]
    caption = "All runs: " + "; ".join(f"{k} {v}" for k, v in common.items()) if common else ""
    return headings, lines, caption


def option_layout(compared: Table) -> tuple[list[str], list[list[Cell]]]:
    """Headings and cells of a table of the differing options; the first column is the run."""
    headings = ["run", *short_names(compared.options).values()]
    lines: list[list[Cell]] = [
        [(row.label, row.label), *((value, _number(value)) for value in row.options.values())]
        for row in compared.rows
    ]
    return headings, lines


def _runs_table(compared: Table) -> RichTable:
    headings, lines, caption = layout(compared)
    return _rich(headings, [[text for text, _ in line] for line in lines], caption)


def _options_table(compared: Table) -> RichTable:
    """One line of text per run, since there may be more options than a terminal has columns."""
    headings, lines = option_layout(compared)
    texts = []
    for (label, _), *values in lines:
        pairs = zip(headings[1:], values, strict=True)
        texts.append([label, ", ".join(f"{h}={v}" for h, (v, _) in pairs if v != DEFAULT)])
    return _rich(["run", "options that differ"], texts, "What is not named has its default.")


def _groups_table(compared: Table) -> RichTable:
    lines = [[text for text, _ in group_cells(g)] for g in compared.groups]
    return _rich(GROUP_COLUMNS, lines, GROUP_CAPTION)


def _rich(headings: Sequence[str], lines: Sequence[Sequence[str]], caption: str) -> RichTable:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    result = RichTable(box=box.SIMPLE_HEAD, caption=caption or None, caption_justify="left")
    for heading in headings:
        justify: Literal["left", "right"] = "right" if is_number(heading) else "left"
        result.add_column(Text(heading), justify=justify, overflow="fold")
    for line in lines:
        result.add_row(*map(Text, line))
    return result
