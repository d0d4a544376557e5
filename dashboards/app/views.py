"""The views of the app, each a function of the chosen runs."""

from __future__ import annotations

import difflib
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from fedsim import compare, tables
from fedsim.dashboards import options, page
from fedsim.dashboards.app import loading
from fedsim.dashboards.app.choosing import plain, settings
from fedsim.dashboards.drawing import notes
from fedsim.dashboards.panel import NothingToShow
from fedsim.results import Run
from fedsim.units import MISSING

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

PREVIEW_ROWS = 1000
MAX_LOG_LINES = 200
MANY_RUNS = 40
"""With more runs, a browser takes seconds for all panels; it gets the ``FIRST_PANELS``."""
FIRST_PANELS = 4


def overview(runs: Sequence[Run]) -> None:
    """The table of runs, progress of those that go on, and why some failed."""
    st.header("Runs")
    for run in runs:
        if run.status == "running":
            _progress(run)
    compared = compare.table(runs)
    headings, lines, caption = compare.layout(compared)
    _show(headings, lines, "Table of runs")
    st.caption(plain(caption))
    for row in compared.rows:
        if row.reason:
            st.error(plain(f"{row.label}, seed {row.seed}: {row.reason}"))
    if any(len(group.rows) > 1 for group in compared.groups):
        _over_seeds(compared)


def figures(runs: Sequence[Run]) -> None:
    """Panels, with sliders for what they can be told."""
    st.header("Figures")
    panels = options.by_name()
    few = len(runs) > MANY_RUNS
    names = st.multiselect(
        "Panels",
        list(panels),
        default=list(panels)[: FIRST_PANELS if few else None],
        format_func=lambda name: panels[name].title,
        key="panels",
    )
    if few:
        st.caption(f"Of {len(runs)} runs, the first {FIRST_PANELS} panels are drawn; add others.")
    wanted = {name: options.options(panels[name]) for name in names}
    values = settings({k: o for taken in wanted.values() for k, o in taken.items()}, runs)
    for name in names:
        panel = panels[name]
        st.subheader(panel.title)
        st.caption(plain(panel.question))
        given = {option: value for option, value in values.items() if option in wanted[name]}
        _panel(name, runs, given)


def scenarios(runs: Sequence[Run]) -> None:
    """In which options the runs differ, and the scenarios of two of them side by side."""
    st.header("Scenarios")
    compared = compare.table(runs)
    headings, lines = compare.option_layout(compared)
    if compared.options:
        _show(headings, lines, "Options that differ")
    else:
        st.info("These runs do not differ, but perhaps in name, seed, strategy and codec.")
    labels = {
        f"{r.label}, seed {r.seed} ({run.path.name})": run
        for r, run in zip(compared.rows, runs, strict=True)
    }
    left, right = st.columns(2)
    one = left.selectbox("Compare", list(labels), index=0)
    other = right.selectbox("with", list(labels), index=len(labels) - 1)
    old, new = (_lines(labels[label]) for label in (one, other))
    changes = list(difflib.unified_diff(old, new, one, other, lineterm="", n=3))
    st.code("\n".join(changes or old), language="diff" if changes else "yaml")


def data(runs: Sequence[Run]) -> None:
    """The numbers behind everything, to look at and to download."""
    st.header("Data")
    name = st.radio("Table", list(tables.TABLES), horizontal=True)
    frame = _table(name, loading.stamp_of(runs), list(runs))
    if frame.empty:
        st.info("No rows. Local steps are logged where a scenario says `log_steps: true`.")
        return
    st.caption(f"{len(frame):,} rows, {len(frame.columns)} columns")
    st.dataframe(
        frame.head(PREVIEW_ROWS), hide_index=True, placeholder=MISSING, alt=f"Table {name}"
    )
    if len(frame) > PREVIEW_ROWS:
        st.caption(f"The first {PREVIEW_ROWS:,} rows are shown; downloads have all.")
    csv, parquet = st.columns(2)
    _download(csv, f"{name}.csv", "text/csv", lambda: frame.to_csv(index=False).encode())
    _download(parquet, f"{name}.parquet", "application/octet-stream", lambda: _parquet(frame))


def log(runs: Sequence[Run]) -> None:
    """Warnings of the runs, and what is wrong with their folders."""
    st.header("Log")
    silent = True
    for run in runs:
        lines = [*run.problems, *run.events]
        if lines:
            silent = False
            title = f"{run.name}, seed {run.seed} ({run.status}): {len(lines)} lines"
            with st.expander(plain(title), expanded=bool(run.problems)):
                st.code("\n".join(lines[-MAX_LOG_LINES:]), language=None, wrap_lines=True)
                st.caption(plain(str(run.path)))
    if silent:
        st.info("No warnings.")


VIEWS: dict[str, Callable[[Sequence[Run]], None]] = {
    "Runs": overview,
    "Figures": figures,
    "Scenarios": scenarios,
    "Data": data,
    "Log": log,
}


@st.cache_resource(max_entries=6, show_spinner=False)
def _table(name: str, stamp: str, _runs: list[Run]) -> pd.DataFrame:
    """One of the tables; made again when a run changes."""
    return tables.TABLES[name](_runs)


def _progress(run: Run) -> None:
    total, done = run.scenario.get("num_rounds"), run.overview.get("final_round") or 0
    share = min(1.0, done / total) if isinstance(total, int) and total else 0.0
    score = run.overview["key_metric"]["final"]
    text = f"{run.name}, seed {run.seed}: round {done} of {total or '?'}"
    text += f", {run.key_metric[0]} {score:.4g}" if score is not None else ""
    st.progress(share, text=plain(text))


def _over_seeds(compared: compare.Table) -> None:
    headings, lines = compare.group_layout(compared)
    st.subheader("Over seeds")
    _show(headings, lines, "Table over seeds")
    st.caption(compare.GROUP_CAPTION)


def _panel(name: str, runs: Sequence[Run], given: dict[str, Any]) -> None:
    drawn = figure(name, runs, given)
    if isinstance(drawn, str):
        st.info(f"Nothing to show: {plain(drawn)}")
        return
    title = options.by_name()[name].title
    st.plotly_chart(drawn, theme=None, key=f"figure {name}", config=page.CONFIG, alt=title)
    for text in notes(drawn):
        st.caption(plain(text))
    _download(st, f"{name}.html", "text/html", lambda: drawn.to_html().encode(), "Figure as HTML")


def panel_names() -> list[str]:
    """The panels, in the order of the page."""
    return list(options.by_name())


def figure(name: str, runs: Sequence[Run], given: dict[str, Any]) -> go.Figure | str:
    """The figure of a panel, or why there is none; kept until runs or settings change."""
    stamp = loading.stamp_of(runs)
    return _figure(name, stamp, tuple(sorted(given.items())), list(runs))


@st.cache_resource(max_entries=200, show_spinner=False)
def _figure(
    name: str, stamp: str, given: tuple[tuple[str, Any], ...], _runs: list[Run]
) -> go.Figure | str:
    try:
        return options.by_name()[name].draw(_runs, **dict(given))
    except NothingToShow as reason:
        return str(reason)


def _download(place: Any, file: str, mime: str, make: Callable[[], bytes], label: str = "") -> None:
    """A button whose file is made when it is pressed."""
    place.download_button(
        label or f"Download {file}", make, file, mime, key=f"get {file}", on_click="ignore"
    )


def _parquet(frame: pd.DataFrame) -> bytes:
    file = io.BytesIO()
    frame.to_parquet(file, index=False)
    return file.getvalue()


def _show(headings: Sequence[str], lines: Sequence[Sequence[compare.Cell]], alt: str) -> None:
    """A table whose columns are as wide as their longest text; the app's own guess cuts numbers."""
    columns = {
        heading: st.column_config.Column(
            width=min(300, 18 + round(6.5 * max(len(heading), *(len(text) for text, _ in cells)))),
            alignment="right" if _by_value(cells) else "left",
        )
        for heading, cells in zip(headings, zip(*lines, strict=True), strict=True)
    }
    frame = _frame(headings, lines)
    st.dataframe(frame, hide_index=True, placeholder=MISSING, alt=alt, column_config=columns)


def _frame(headings: Sequence[str], lines: Sequence[Sequence[compare.Cell]]) -> Styler:
    """Cells as people read them; columns of numbers hold exact ones, to be sorted by."""
    columns = dict(zip(headings, zip(*lines, strict=True), strict=True))
    shown = {h: dict(_by_value(cells)) for h, cells in columns.items() if _is_exact(cells)}
    frame = pd.DataFrame(
        {h: [value if h in shown else text for text, value in c] for h, c in columns.items()}
    )
    style = frame.style
    for heading, texts in shown.items():
        style = style.format(texts.__getitem__, subset=[heading], na_rep=MISSING)
    return style


def _by_value(cells: Sequence[compare.Cell]) -> set[tuple[float, str]]:
    return {(value, text) for text, value in cells if isinstance(value, int | float)}


def _is_exact(cells: Sequence[compare.Cell]) -> bool:
    """Whether a column is made of numbers, each with one way to be shown."""
    numbers = _by_value(cells)
    others = [v for _, v in cells if v is not None and not isinstance(v, int | float)]
    return bool(numbers) and not others and len(numbers) == len({value for value, _ in numbers})


def _lines(run: Run) -> list[str]:
    try:
        return (run.path / "resolved.yaml").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
