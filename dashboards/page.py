"""The report: one HTML page that opens from disk and asks the network for nothing.

plotly.js is inside the page, a content security policy forbids every request, and text from
scenarios is escaped.
"""

from __future__ import annotations

import html
import importlib
import pkgutil
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, cast

from plotly.io import to_html
from plotly.offline import get_plotlyjs

from fedsim import compare, dashboards
from fedsim.dashboards import assets
from fedsim.dashboards.drawing import Group, groups, notes
from fedsim.dashboards.panel import NothingToShow, Panel
from fedsim.differences import flatten
from fedsim.results import Run, write_text, writing

POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)
CONFIG = {
    "displaylogo": False,
    "responsive": True,
    "showSendToCloud": False,  # on by default, and sends the data to a server when clicked
    "modeBarButtonsToRemove": ["select2d", "lasso2d"],
}
MAX_EVENTS = 30
"""Log lines shown per run; the rest is counted."""


def write_page(runs: Sequence[Run], path: Path) -> None:
    """Write the report of some runs.

    Args:
        runs: At least one, in the order of the table.
        path: The file to write; its folder is made when missing.

    Raises:
        OutputError: The file cannot be written; a page that was there is untouched.
    """
    text = page(runs)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def page(runs: Sequence[Run]) -> str:
    """The report as HTML."""
    sections = "\n".join(_panel(panel, runs) for panel in panels())
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{_title(runs)}</title>
<style>{assets.CSS}</style>
<script>{get_plotlyjs()}</script>
</head>
<body>
<main>
<header>
<h1>{_title(runs)}</h1>
<p class="dim">{_subtitle(runs)}</p>
</header>
{_tables(runs)}
{sections}
{_details(runs)}
</main>
<script>{assets.JS}</script>
</body>
</html>
"""


def panels() -> list[Panel]:
    """Modules of this package that draw, and entry points ``fedsim.panels``, in their order."""
    names = [f"{dashboards.__name__}.{m.name}" for m in pkgutil.iter_modules(dashboards.__path__)]
    modules: list[Any] = [importlib.import_module(name) for name in names]
    modules += [point.load() for point in entry_points(group="fedsim.panels")]
    found = [cast(Panel, module) for module in modules if hasattr(module, "draw")]
    return sorted(found, key=lambda panel: panel.order)


def _panel(panel: Panel, runs: Sequence[Run]) -> str:
    try:
        figure = panel.draw(runs)
    except NothingToShow as reason:
        body = f'<p class="empty">Nothing to show: {html.escape(str(reason))}</p>'
    else:
        body = to_html(
            figure.to_dict(),
            validate=False,  # it was when it was made; a second time takes seconds
            full_html=False,
            include_plotlyjs=False,
            config=CONFIG,
            div_id="panel-" + panel.title.lower().replace(" ", "-"),
            default_height=f"{figure.layout.height}px",
        )
        body += "".join(f'<p class="dim note">{html.escape(text)}</p>' for text in notes(figure))
    return f"""<section class="panel">
<h2>{html.escape(panel.title)}</h2>
<p class="dim">{html.escape(panel.question)}</p>
{body}
</section>"""


def _title(runs: Sequence[Run]) -> str:
    names = list(dict.fromkeys(run.name for run in runs))
    shown = names[:3] if len(", ".join(names[:3])) <= 60 else names[:1]
    rest = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return html.escape(f"{', '.join(shown)}{rest} · fedsim report")


def _subtitle(runs: Sequence[Run]) -> str:
    days = list(dict.fromkeys(run.started[:16].replace("T", " ") for run in runs if run.started))
    when = f", started {days[0]}" + (f" to {days[-1]}" if len(days) > 1 else "") if days else ""
    count = f"{len(runs)} run" + ("s" if len(runs) > 1 else "")
    return html.escape(f"{count}{when} UTC" if days else count)


def _tables(runs: Sequence[Run]) -> str:
    compared, drawn = compare.table(runs), groups(runs)
    by_path = {str(run.path): _swatch(group) for group in drawn for run in group.runs}
    swatches = [by_path[row.path] for row in compared.rows]
    headings, cells, caption = compare.layout(compared)
    caption += ". " if caption else ""
    caption += "Click a heading to sort." if len(runs) > 1 else ""
    result = f"<h2>Runs</h2>{_table(headings, cells, swatches, caption)}"
    for row in compared.rows:
        if row.reason:
            reason = html.escape(f"{row.label}, seed {row.seed}: {row.reason}")
            result += f'<p class="bad">{reason}</p>'
    if any(len(group.rows) > 1 for group in compared.groups):
        headings, cells = compare.group_layout(compared)
        caption = f"{compare.GROUP_CAPTION}."
        table = _table(headings, cells, list(map(_swatch, drawn)), caption)
        result += f"<h2>Over seeds</h2>{table}"
    if compare.has_option_table(compared):
        if len(compared.options) > compare.MAX_OPTION_COLUMNS:
            headings, cells, caption = compare.option_list(compared)
        else:
            (headings, cells), caption = compare.option_layout(compared), ""
        result += f"<h2>Options that differ</h2>{_table(headings, cells, swatches, caption)}"
    return f"<section>{result}</section>"


def _table(
    headings: Sequence[str],
    cells: Sequence[Sequence[compare.Cell]],
    swatches: Sequence[str],
    caption: str,
) -> str:
    """A sortable table; each row begins with its swatch."""
    lines = list(map(_line, cells, swatches))
    number = [' class="number"' if compare.is_number(heading) else "" for heading in headings]
    head = "".join(
        f'<th scope="col"{kind}><button class="sorter" type="button">{_breakable(h)}</button></th>'
        for h, kind in zip(headings, number, strict=True)
    )
    body = "\n".join(
        f"<tr>{''.join(f'<td{kind} {c}</td>' for c, kind in zip(line, number, strict=True))}</tr>"
        for line in lines
    )
    return (
        f'<div class="scroll"><table><caption>{html.escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def _breakable(heading: str) -> str:
    """A heading that may be broken after dots and slashes."""
    return html.escape(heading).replace(".", ".<wbr>").replace("/", "/<wbr>")


def _line(cells: Sequence[compare.Cell], swatch: str) -> list[str]:
    """Attribute to sort by and content of each cell; the swatch goes into the first."""
    texts = [
        f'data-sort="{html.escape("" if value is None else str(value))}"{_exact(text, value)}>'
        f"{html.escape(text)}"
        for text, value in cells
    ]
    return [texts[0].replace(">", f">{swatch}", 1), *texts[1:]]


def _exact(text: str, value: float | str | None) -> str:
    """The number behind a rounded one, shown on hover."""
    number = isinstance(value, int | float) and text != str(value)
    return f' title="{value:,}"' if number else ""


def _swatch(group: Group) -> str:
    """A short piece of the group's line, as in the figures."""
    dashes = {"solid": "", "dash": "6 3", "dot": "2 3", "dashdot": "6 3 2 3"}[group.dash]
    return (
        '<svg class="swatch" width="26" height="8" aria-hidden="true"><line x1="0" y1="4" x2="26" '
        f'y2="4" stroke="{group.colour}" stroke-width="3" stroke-dasharray="{dashes}"/></svg>'
    )


def _details(runs: Sequence[Run]) -> str:
    """Warnings, then the scenario and the machine of each group."""
    notes = "".join(_notes(run) for run in runs)
    scenarios = "".join(_scenario(group) for group in groups(runs))
    heading = "<h2>Warnings</h2>" if notes else ""
    return f"<section>{heading}{notes}<h2>Scenarios</h2>{scenarios}</section>"


def _notes(run: Run) -> str:
    lines = [*run.problems, *run.events[:MAX_EVENTS]]
    if len(run.events) > MAX_EVENTS:
        lines.append(f"... {len(run.events) - MAX_EVENTS} more lines in events.log")
    head = f"{run.name}, seed {run.seed} ({run.status}): {run.path}"
    return _fold(head, lines) if lines else ""


def _scenario(group: Group) -> str:
    run = group.runs[0]
    versions = ", ".join(f"{k} {v}" for k, v in run.env.get("versions", {}).items() if v)
    head = group.label + (f" (seed {run.seed} of {len(group.runs)})" if len(group.runs) > 1 else "")
    options = [f"{key}: {value}" for key, value in flatten(run.scenario).items()]
    return _fold(head, [*options, "", f"# {run.env.get('command', '')}", f"# {versions}"])


def _fold(head: str, lines: Sequence[str]) -> str:
    text = html.escape("\n".join(lines))
    return f"<details><summary>{html.escape(head)}</summary><pre>{text}</pre></details>\n"
