"""Tables over runs, for people and programs: in the terminal, as JSON and CSV, for the page.

The head table has a line per run; a column that no run has a value for is left out, and so is one
in which all runs agree. Numbers are rounded for reading; JSON and CSV have them exactly.
"""

from __future__ import annotations

import csv
import io
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Literal

from fedsim import fitting
from fedsim.comparison import NUMBERS, Group, Row, Spread, Table, spread, table
from fedsim.differences import DEFAULT, short_names
from fedsim.records import Record, dumps
from fedsim.units import MISSING, human_bytes, human_energy, human_score, human_time

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

__all__ = ["Group", "Row", "Spread", "Table", "print_table", "spread", "table", "to_csv", "to_json"]

Cell = tuple[str, float | str | None]
"""What people see, and what to sort by."""
FORMATS: dict[str, Callable[[float | None], str]] = {
    "best": human_score,
    "final": human_score,
    "up_bytes": human_bytes,
    "down_bytes": human_bytes,
    "virtual_s": human_time,
    "energy_j": human_energy,
    "wall_s": human_time,
    "memory_bytes": human_bytes,
    "epsilon": human_score,
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


def to_csv(compared: Table) -> str:
    """The table as CSV with exact numbers: a line per run, the differing options last."""
    file = io.StringIO()
    rows = [asdict(row) for row in compared.rows]
    fields = [key for key in rows[0] if key != "options"] if rows else []
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*fields, *compared.options])
    for row in rows:
        writer.writerow([*(row[key] for key in fields), *row["options"].values()])
    return file.getvalue()


def print_table(compared: Table, console: Console | None = None) -> None:
    """Print the runs, and below them the groups of several seeds, as rich tables.

    What is too wide for the terminal is left out in the order of ``SPARE``, and said.
    """
    from rich.console import Console
    from rich.text import Text

    console = console or Console(width=None if sys.stdout.isatty() else 160)
    in_columns = _options_fit(compared, console.width)
    console.print(_runs_table(compared, console.width, in_columns))
    for row in compared.rows:
        if row.reason:
            console.print(Text(f"{row.label}, seed {row.seed}: {row.reason}", style="red"))
    if compared.options and not in_columns:
        console.print(_options_table(compared))
    if any(len(g.rows) > 1 for g in compared.groups):
        console.print(_groups_table(compared, console.width))


def columns(compared: Table) -> list[str]:
    """Headings of the table of runs; ``cells`` has the values.

    The metric is named in the heading when all runs share it.
    """
    metrics = _metrics(compared)
    score = metrics.pop() if len(metrics) == 1 else "score"
    head = ["run", "strategy", "codec", "seed", "rounds", f"best {score}", f"final {score}"]
    return [
        *head,
        *COSTS.values(),
        "failed clients",
        "status",
    ]


COSTS = {
    "up_bytes": "up",
    "down_bytes": "down",
    "virtual_s": "virtual time",
    "energy_j": "energy",
    "wall_s": "wall time",
    "memory_bytes": "memory",
    "epsilon": "epsilon",
}
"""Headings of the numbers after the scores."""


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


NUMBER_COLUMNS = ("seed", "rounds", "n", *COSTS.values(), "failed clients")
OPTIONAL = ("virtual time", "energy", "memory", "epsilon")
"""Columns that are there only when some run has a value."""
GROUP_CAPTION = "mean ± sample standard deviation over n seeds"


def group_layout(compared: Table) -> tuple[list[str], list[list[Cell]]]:
    """Headings and cells of the table of groups."""
    headings = ["over seeds", "n", "best", "final", *COSTS.values(), "status"]
    return _without_empty(headings, list(map(_group_cells, compared.groups)))


def _without_empty(
    headings: list[str], lines: list[list[Cell]]
) -> tuple[list[str], list[list[Cell]]]:
    """Without those of ``OPTIONAL`` that are empty in all lines."""
    keep = [
        i
        for i, heading in enumerate(headings)
        if heading not in OPTIONAL or any(line[i][1] is not None for line in lines)
    ]
    return [headings[i] for i in keep], [[line[i] for i in keep] for line in lines]


def _group_cells(g: Group) -> list[Cell]:
    means = {name: value.mean for name, value in g.spreads.items()}
    numbers = [(human_spread(name, g.spreads.get(name)), means.get(name)) for name in NUMBERS]
    return [(g.label, g.label), (str(len(g.rows)), len(g.rows)), *numbers, (g.status, g.status)]


def is_number(heading: str) -> bool:
    """Whether a column holds numbers, to be set flush right."""
    return heading in NUMBER_COLUMNS or heading.startswith(("best", "final"))


def has_option_table(compared: Table) -> bool:
    """Whether the options are too many to be columns of the table of runs."""
    return len(compared.options) > MAX_OPTIONS


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


MAX_OPTIONS = 4
"""More differing options than these get a table of their own."""
FOLDABLE = ("strategy", "codec", "seed", "rounds", "failed clients", "status")
"""Columns that move to the caption when all runs agree."""


def layout(compared: Table, with_options: bool = True) -> tuple[list[str], list[list[Cell]], str]:
    """Headings, cells and caption of the table of runs.

    Columns of ``FOLDABLE`` in which several runs all agree are named in the caption instead; more
    than ``MAX_OPTIONS`` differing options are left to ``option_layout``.
    """
    headings = columns(compared)
    mixed = len(_metrics(compared)) > 1
    headings, lines = _without_empty(headings, [cells(row, mixed) for row in compared.rows])
    common = {
        heading: column[0][0]
        for heading, column in zip(headings, zip(*lines, strict=True), strict=True)
        if heading in FOLDABLE and len(set(column)) == 1 and len(lines) > 1
    }
    keep = [i for i, heading in enumerate(headings) if heading not in common]
    headings, lines = [headings[i] for i in keep], [[line[i] for i in keep] for line in lines]
    if with_options and not has_option_table(compared):
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


def option_list(compared: Table) -> tuple[list[str], list[list[Cell]], str]:
    """The same as one line of text per run, for more options than there is room for; a caption."""
    headings, lines = option_layout(compared)
    texts: list[list[Cell]] = []
    usual = [
        _usual([value for value, _ in column]) for column in list(zip(*lines, strict=True))[1:]
    ]
    for (label, key), *values in lines:
        pairs = zip(headings[1:], values, usual, strict=True)
        text = ", ".join(f"{heading}={value}" for heading, (value, _), own in pairs if value != own)
        texts.append([(label, key), (text, text)])
    shared = [f"{h}={v}" for h, v in zip(headings[1:], usual, strict=True) if v != DEFAULT]
    most = f"Most runs: {', '.join(shared)}. " if shared else ""
    caption = f"{most}What is not named {'is as there, or ' if most else ''}has its default."
    return ["run", "options that differ"], texts, caption


def _usual(values: Sequence[str]) -> str:
    """The value that more than half of at least three runs have; else the default."""
    value, count = Counter(values).most_common(1)[0]
    return value if len(values) > 2 and 2 * count > len(values) else DEFAULT


MAX_OPTION_COLUMNS = 10
"""More differing options than these are listed by the page as text, which also fits on paper."""


SPARE = (
    "memory", "wall time", "failed clients", "rounds", "final", "epsilon", "energy",
    "virtual time", "status", "down", "up", "codec", "strategy", "seed",
)  # fmt: skip
"""Columns that a narrow terminal does without, the first one first."""


def _options_fit(compared: Table, width: int) -> bool:
    """Whether the options can be columns of the table of runs."""
    headings, lines, _ = layout(compared)
    return not has_option_table(compared) and fitting.fits(headings, _texts(lines), width)


def _runs_table(compared: Table, width: int, with_options: bool) -> RichTable:
    headings, lines, caption = layout(compared, with_options)
    return _fitted(headings, lines, caption, width)


def _options_table(compared: Table) -> RichTable:
    headings, lines, caption = option_list(compared)
    return _rich(headings, _texts(lines), caption)


def _groups_table(compared: Table, width: int) -> RichTable:
    headings, lines = group_layout(compared)
    return _fitted(headings, lines, GROUP_CAPTION, width)


def _fitted(
    headings: Sequence[str], lines: Sequence[Sequence[Cell]], caption: str, width: int
) -> RichTable:
    kept, texts, left_out = fitting.fit(headings, _texts(lines), width, SPARE)
    if left_out:
        missing = f"No room for: {', '.join(left_out)} (a wider terminal, --json and --csv have it)"
        caption = f"{caption}\n{missing}" if caption else missing
    return _rich(kept, texts, caption)


def _texts(lines: Sequence[Sequence[Cell]]) -> list[list[str]]:
    return [[text for text, _ in line] for line in lines]


def _rich(headings: Sequence[str], lines: Sequence[Sequence[str]], caption: str) -> RichTable:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    result = RichTable(box=box.SIMPLE_HEAD, caption=caption or None, caption_justify="left")
    for heading in headings:
        number = is_number(heading.replace("\n", " "))
        justify: Literal["left", "right"] = "right" if number else "left"
        result.add_column(Text(heading), justify=justify, overflow="fold")
    for line in lines:
        result.add_row(*map(Text, line))
    return result
