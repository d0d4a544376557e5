"""Panel: bytes on the wire in each direction."""

from __future__ import annotations

from collections.abc import Sequence

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
    styled,
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
    drawn = [
        g
        for g in groups(runs)
        if any(key in r for run in g.runs for r in run.rounds for key in DIRECTIONS)
    ]
    if not drawn:
        raise NothingToShow("No run has counted bytes yet.")
    figure = make_subplots(
        1,
        len(DIRECTIONS),
        shared_yaxes=True,
        subplot_titles=list(DIRECTIONS.values()),
        horizontal_spacing=0.04,
    )
    for column, key in enumerate(DIRECTIONS, start=1):

        def total(run: Run, key: str = key) -> Values:
            return cumulative(run, key)

        for group in drawn:
            points = curve(group.runs, total)
            if len(group.runs) > 1:
                figure.add_trace(band(group, points), row=1, col=column)
            hover = "round %{x}: %{y:.4s}B"
            figure.add_trace(line(group, points, hover, showlegend=column == 1), row=1, col=column)
    return _finished(figure)


def _finished(figure: go.Figure) -> go.Figure:
    styled(figure, height=430)
    figure.update_xaxes(title="round")
    figure.update_yaxes(tickformat="~s", ticksuffix="B", rangemode="tozero")
    figure.update_yaxes(title="bytes, all clients so far", col=1)
    scales = [
        {"label": kind, "method": "relayout", "args": [{"yaxis.type": kind, "yaxis2.type": kind}]}
        for kind in ("linear", "log")
    ]
    figure.update_layout(updatemenus=buttons(scales))
    return figure
