"""Panel: the score of each run against rounds, bytes and time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from fedsim.dashboards.drawing import (
    Curve,
    Group,
    Values,
    band,
    buttons,
    by_round,
    cumulative,
    curve,
    groups,
    line,
    log_bytes,
    metric_label,
    round_ticks,
    styled,
)
from fedsim.dashboards.panel import NothingToShow
from fedsim.results import Run

order = 10
title = "Score"
question = (
    "What score does each run reach, and after how many rounds, bytes and seconds? "
    "Lines are means over seeds, shaded from the lowest to the highest seed."
)


@dataclass(frozen=True)
class View:
    """One choice of x axis."""

    name: str
    axis: str
    hover: str
    x: Callable[[Run], Values] | None = None
    log: bool = False


def _bytes(run: Run) -> Values:
    return cumulative(run, "comm/up_bytes", "comm/down_bytes")


def _seconds(run: Run) -> Values:
    return cumulative(run, "time/wall_s")


VIEWS = (
    View("rounds", "round (0 = before training)", "round %{x}"),
    View(
        "bytes",
        "bytes sent, up + down, all clients so far (log scale; round 0 has none)",
        "%{x:.3s}B",
        _bytes,
        log=True,
    ),
    View("wall time", "wall time since the start (s)", "%{x:.1f} s", _seconds),
)


def draw(runs: Sequence[Run]) -> go.Figure:
    """Draw one line per group of seeds, with a button for each x axis."""
    drawn = [group for group in groups(runs) if any(_score(run) for run in group.runs)]
    if not drawn:
        raise NothingToShow("No run has been evaluated yet.")
    drawings = [_traces(drawn, view) for view in VIEWS]
    axes = [_axis(view, traces, runs) for view, traces in zip(VIEWS, drawings, strict=True)]
    figure = styled(go.Figure(drawings[0]), height=480)
    figure.update_layout(updatemenus=buttons(list(map(_button, VIEWS, drawings, axes))))
    figure.update_yaxes(title={"text": _score_label(drawn)})
    figure.update_xaxes(**axes[0])
    return figure


def _score(run: Run) -> Values:
    return by_round(run, run.key_metric[0])


def _score_label(drawn: Sequence[Group]) -> str:
    keys = dict.fromkeys(run.key_metric[0] for group in drawn for run in group.runs)
    return "; ".join(map(metric_label, keys))


def _traces(drawn: Sequence[Group], view: View) -> list[go.Scatter]:
    bands, lines = [], []
    for group in drawn:
        points = curve(group.runs, _score, view.x)
        if view.log:
            points = _positive(points)
        if len(group.runs) > 1:
            bands.append(band(group, points))
        lines.append(line(group, points, f"{view.hover}: %{{y:.4g}}"))
    return bands + lines


def _positive(points: Curve) -> Curve:
    """Without the points that a logarithmic axis cannot show."""
    rows = zip(points.x, points.mean, points.low, points.high, points.n, strict=True)
    kept = [row for row in rows if row[0] > 0]
    return (
        Curve(*(list(column) for column in zip(*kept, strict=True))) if kept else Curve(*[[]] * 5)
    )


def _axis(view: View, traces: Sequence[go.Scatter], runs: Sequence[Run]) -> dict[str, Any]:
    """Properties of the x axis; every view sets all of them, so that buttons undo each other."""
    sent = [x for trace in traces for x in trace.x if x > 0]
    ticks: dict[str, Any] = {"tickmode": None, "tickvals": None, "ticktext": None, "dtick": None}
    if view.log and sent:
        ticks |= log_bytes(sent)
    if view.x is None:
        ticks["dtick"] = round_ticks(runs)
    kind = "log" if view.log else "linear"
    return {"title": {"text": view.axis, "standoff": 8}, "type": kind, "autorange": True, **ticks}


def _button(view: View, traces: Sequence[go.Scatter], axis: dict[str, Any]) -> dict[str, Any]:
    data = {
        key: [trace[key] for trace in traces] for key in ("x", "y", "customdata", "hovertemplate")
    }
    layout = {f"xaxis.{key}": value for key, value in axis.items()}
    return {"label": view.name, "method": "update", "args": [data, layout]}
