"""Panel: bytes on the wire in each direction."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from fedsim.dashboards.axes import log_bytes, round_ticks
from fedsim.dashboards.curves import Column, cumulative
from fedsim.dashboards.drawing import add_lines, buttons, groups, styled
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
    drawn = [g for g in groups(runs) if any(_sent(run).positive for run in g.runs)]
    if not drawn:
        raise NothingToShow("No run has sent any bytes yet.")
    figure = make_subplots(
        1,
        len(DIRECTIONS),
        shared_yaxes=True,
        subplot_titles=list(DIRECTIONS.values()),
        horizontal_spacing=0.04,
    )
    named: set[str] = set()
    for column, key in enumerate(DIRECTIONS, start=1):
        sent = partial(_sent, keys=(key,))
        add_lines(figure, drawn, sent, "round %{x}: %{y:.4s}B", (1, column), named, so_far=True)
    return _finished(figure, runs)


def _sent(run: Run, keys: Sequence[str] = tuple(DIRECTIONS)) -> Column:
    """Bytes so far, from round 1: round 0 sends nothing, and a log scale has no place for it."""
    return cumulative(run, *keys).since(1)


def _finished(figure: go.Figure, runs: Sequence[Run]) -> go.Figure:
    styled(figure, height=430)
    figure.update_xaxes(title={"text": "round"}, dtick=round_ticks(runs))
    figure.update_yaxes(tickformat="~s", ticksuffix="B", rangemode="tozero")
    figure.update_yaxes(title={"text": "bytes, all clients so far"}, col=1)
    linear = {"type": "linear", "tickmode": None, "tickvals": None, "ticktext": None}
    log = {"type": "log", **log_bytes(np.concatenate([trace.y for trace in figure.data]))}
    buttons(figure, [_scale(linear), _scale(log)])
    return figure


def _scale(axis: dict[str, Any]) -> dict[str, Any]:
    both = {f"{name}.{key}": value for name in ("yaxis", "yaxis2") for key, value in axis.items()}
    return {"label": axis["type"], "method": "relayout", "args": [both]}
