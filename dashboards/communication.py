"""Panel: bytes on the wire in each direction."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from fedsim.dashboards.drawing import (
    Values,
    band,
    buttons,
    cumulative,
    curve,
    groups,
    line,
    log_bytes,
    round_ticks,
    styled,
    widths,
)
from fedsim.dashboards.panel import NothingToShow
from fedsim.results import Run

order = 20
title = "Communication"
question = "How many bytes went over the wire in each direction, summed over all clients so far?"
DIRECTIONS = {
    "comm/up_bytes": "up: clients to server",
    "comm/down_bytes": "down: server to clients",
}


def draw(runs: Sequence[Run]) -> go.Figure:
    """Draw cumulative bytes over rounds, one subplot per direction on a common scale."""
    drawn = [g for g in groups(runs) if any(any(_sent(run).values()) for run in g.runs)]
    if not drawn:
        raise NothingToShow("No run has sent any bytes yet.")
    figure = make_subplots(
        1,
        len(DIRECTIONS),
        shared_yaxes=True,
        subplot_titles=list(DIRECTIONS.values()),
        horizontal_spacing=0.04,
    )
    for column, key in enumerate(DIRECTIONS, start=1):
        for group, width in zip(drawn, widths(len(drawn)), strict=True):
            points = curve(group.runs, partial(_sent, keys=(key,)))
            if len(group.runs) > 1:
                figure.add_trace(band(group, points), row=1, col=column)
            hover = "round %{x}: %{y:.4s}B"
            trace = line(group, points, hover, width, showlegend=column == 1)
            figure.add_trace(trace, row=1, col=column)
    return _finished(figure, runs)


def _sent(run: Run, keys: Sequence[str] = tuple(DIRECTIONS)) -> Values:
    """Bytes so far, from round 1: round 0 sends nothing, and a log scale has no place for it."""
    return {n: value for n, value in cumulative(run, *keys).items() if n > 0}


def _finished(figure: go.Figure, runs: Sequence[Run]) -> go.Figure:
    styled(figure, height=430)
    figure.update_xaxes(title={"text": "round"}, dtick=round_ticks(runs))
    figure.update_yaxes(tickformat="~s", ticksuffix="B", rangemode="tozero")
    figure.update_yaxes(title={"text": "bytes, all clients so far"}, col=1)
    linear = {"type": "linear", "tickmode": None, "tickvals": None, "ticktext": None}
    log = {"type": "log", **log_bytes([y for trace in figure.data for y in trace.y])}
    figure.update_layout(updatemenus=buttons([_scale(linear), _scale(log)]))
    return figure


def _scale(axis: dict[str, Any]) -> dict[str, Any]:
    both = {f"{name}.{key}": value for name in ("yaxis", "yaxis2") for key, value in axis.items()}
    return {"label": axis["type"], "method": "relayout", "args": [both]}
