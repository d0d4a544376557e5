"""Panel: how many clients answered, and how evenly they fare."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from fedsim.dashboards.drawing import (
    Group,
    Values,
    band,
    by_round,
    curve,
    groups,
    line,
    rgba,
    round_ticks,
    styled,
    widths,
)
from fedsim.dashboards.panel import NothingToShow
from fedsim.results import Run

order = 30
title = "Clients"
question = (
    "How many clients finished or failed in each round, and how far apart are they? "
    "Boxes show the clients of each run's last round, all seeds together."
)
COUNTS = {"clients/completed": "completed per round", "clients/failed": "failed per round"}
SPREADS = {
    "train_loss": "train loss of one client (mean per example)",
    "num_examples": "training examples of one client",
}
"""What the boxes show: the first of these that any run has."""
MAX_POINTS = 200
"""Boxes of more clients show outliers only."""


def draw(runs: Sequence[Run]) -> go.Figure:
    """Draw completed and failed clients over rounds, and a box of the last round's clients."""
    everyone = groups(runs)
    last = {group.label: _last_round(group) for group in everyone}
    counted = [g for g in everyone if any(_count(run, key) for run in g.runs for key in COUNTS)]
    spread = next(
        (k for k in SPREADS if any(k in row for rows in last.values() for row in rows)), ""
    )
    if not counted and not spread:
        raise NothingToShow("No run has finished a round with clients yet.")
    rows = 2 if spread else 1
    figure = make_subplots(
        rows,
        2,
        specs=[[{}, {}], [{"colspan": 2}, None]][:rows],
        subplot_titles=[*COUNTS.values(), "clients of the last round"][: rows + 1],
        vertical_spacing=0.24,
        horizontal_spacing=0.08,
    )
    _add_counts(figure, counted)
    if spread:
        _add_boxes(figure, everyone, last, spread)
    styled(figure, height=520 + 26 * len(everyone) if spread else 340)
    _set_count_axes(figure, round_ticks(runs))
    return figure


def _last_round(group: Group) -> list[dict[str, Any]]:
    """Rows of the clients that finished in each run's last round; reads the file once."""
    rows: list[dict[str, Any]] = []
    for run in group.runs:
        newest = 0
        kept: list[dict[str, Any]] = []
        for row in run.clients:
            number = row.get("round", 0)
            if number > newest:
                newest, kept = number, []
            if number == newest and row.get("status", "ok") == "ok":
                kept.append(row)
        rows += kept
    return rows


def _add_counts(figure: go.Figure, counted: Sequence[Group]) -> None:
    for column, key in enumerate(COUNTS, start=1):
        for group, width in zip(counted, widths(len(counted)), strict=True):
            points = curve(group.runs, partial(_count, key=key))
            if len(group.runs) > 1:
                figure.add_trace(band(group, points), row=1, col=column)
            hover = "round %{x}: %{y:.4~g} clients"
            trace = line(group, points, hover, width, showlegend=column == 1)
            figure.add_trace(trace, row=1, col=column)


def _count(run: Run, key: str) -> Values:
    return {n: value for n, value in by_round(run, key).items() if n > 0}


def _add_boxes(
    figure: go.Figure, everyone: Sequence[Group], last: dict[str, list[dict[str, Any]]], key: str
) -> None:
    for group in everyone:
        values = [row[key] for row in last[group.label] if row.get(key) is not None]
        if not values:
            continue
        box = go.Box(
            x=values,
            y=[group.name] * len(values),
            name=group.name,
            orientation="h",
            legendgroup=group.label,
            showlegend=False,
            boxpoints="all" if len(values) <= MAX_POINTS else "outliers",
            jitter=0.4,
            pointpos=0,
            marker={"color": group.colour, "symbol": group.symbol, "size": 4, "opacity": 0.7},
            line={"color": group.colour},
            fillcolor=rgba(group.colour, 0.2),
            hovertemplate="%{x:.4g}<extra></extra>",
        )
        figure.add_trace(box, row=2, col=1)
    figure.update_xaxes(title={"text": SPREADS[key]}, row=2, col=1)
    figure.update_yaxes(showticklabels=False, autorange="reversed", row=2, col=1)


def _set_count_axes(figure: go.Figure, round_tick: int | None) -> None:
    figure.update_xaxes(title={"text": "round"}, dtick=round_tick, row=1)
    figure.update_yaxes(title={"text": "clients"}, row=1, col=1)
    for column in (1, 2):
        traces = figure.select_traces({"type": "scatter"}, row=1, col=column)
        top = 1.1 * max([1.0, *(value for trace in traces for value in trace.y)])
        whole = 1 if top < 8 else None  # no fractions of a client
        figure.update_yaxes(range=[0, top], dtick=whole, row=1, col=column)
