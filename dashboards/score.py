"""Panel: the score of each run against rounds, bytes, time and energy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from fedsim.dashboards.axes import log_bytes, metric_label, number, round_ticks, time_ticks
from fedsim.dashboards.costs import COSTS, Cost, scores
from fedsim.dashboards.curves import (
    THINNING,
    Column,
    Curve,
    combined,
    most_points,
    rounds_of,
    thinning,
)
from fedsim.dashboards.drawing import (
    Group,
    band,
    buttons,
    groups,
    has_band,
    line,
    note,
    on_hover,
    outline,
    rounded,
    styled,
)
from fedsim.dashboards.panel import NothingToShow
from fedsim.results import Run

order = 10
title = "Score"
question = (
    "What score does each run reach, and after how many rounds, bytes, seconds and joules? "
    "Lines are means over seeds, shaded from the lowest to the highest seed."
)


@dataclass(frozen=True)
class View:
    """One choice of x axis."""

    name: str
    axis: str
    hover: str
    x: Callable[[Run], Column] | None = None
    log: bool = False
    suffix: str = ""

    @property
    def on_hover(self) -> str:
        """Template for a point."""
        return f"{self.hover}: %{{y:.4g}}"


ROUNDS = View("rounds", "round (0 = before training)", "round %{x}")


def _view(cost: Cost) -> View:
    log = cost.unit == "B"
    axis = f"{cost.axis}, so far" + (" (log scale; round 0 has none)" if log else "")
    hover = number("x", cost.unit)
    return View(cost.name, axis, hover, cost.so_far, log, "" if log else cost.unit)


def draw(runs: Sequence[Run], *, x: str = "rounds") -> go.Figure:
    """Draw one line per group of seeds, with a button for each x axis that any run has.

    Args:
        runs: What to draw.
        x: The view that is shown first: ``rounds``, or the name of one of ``costs.COSTS``.
    """
    drawn = [group for group in groups(runs) if any(scores(run).known for run in group.runs)]
    if not drawn:
        raise NothingToShow("No run has been evaluated yet.")
    measured = [cost for cost in COSTS if any(cost.so_far(run).positive for run in runs)]
    views = [ROUNDS, *map(_view, measured)]
    first = next((i for i, view in enumerate(views) if view.name == x), 0)
    ys = [[scores(run) for run in group.runs] for group in drawn]
    drawings = [_lines(drawn, ys, view) for view in views]
    axes = [_axis(view, drawings[i], runs) for i, view in enumerate(views)]
    figure = styled(go.Figure(_traces(drawings[first], views[first])), height=480)
    buttons(figure, list(map(_button, views, drawings, axes)), first)
    figure.update_yaxes(title={"text": _score_label(drawn)})
    figure.update_xaxes(**axes[first])
    most = most_points(len(drawn))
    if any(len(own.rounds) > most for of_group in ys for own in of_group):
        note(figure, THINNING.format(most=most))
    return figure


def _score_label(drawn: Sequence[Group]) -> str:
    keys = dict.fromkeys(run.key_metric[0] for group in drawn for run in group.runs)
    return "; ".join(map(metric_label, keys))


Lines = list[tuple[Group, Curve]]
"""The curve of each group in one view."""


def _lines(drawn: Sequence[Group], ys: Sequence[Sequence[Column]], view: View) -> Lines:
    most, lines = most_points(len(drawn)), []
    for group, own in zip(drawn, ys, strict=True):
        points = _points(group, own, view)
        lines.append((group, points.at(thinning(points.mean, most))))
    return lines


def _bands(lines: Lines) -> Lines:
    """Those among them that have a band, which lies below all lines."""
    drawn = [group for group, _ in lines]
    return [(group, points) for group, points in lines if has_band(group, drawn)]


def _traces(lines: Lines, view: View) -> list[go.Scatter]:
    bands = [band(group, points) for group, points in _bands(lines)]
    return bands + [line(group, points, view.on_hover) for group, points in lines]


def _points(group: Group, ys: Sequence[Column], view: View) -> Curve:
    """The curve of a group; a cost that a run did not measure leaves the run out."""
    if view.x is None:
        return combined(list(map(rounds_of, ys)), ys)
    xs = [view.x(run) for run in group.runs]
    have = [(a, b) for a, b in zip(xs, ys, strict=True) if len(a.rounds)]
    points = combined([a for a, _ in have], [b for _, b in have])
    return points.at(points.x > 0) if view.log else points  # a log axis has no place for 0


def _axis(view: View, lines: Lines, runs: Sequence[Run]) -> dict[str, Any]:
    """Properties of the x axis; every view sets all of them, so that buttons undo each other."""
    sent = np.concatenate([points.x for _, points in lines])
    ticks: dict[str, Any] = {"tickmode": None, "tickvals": None, "ticktext": None, "dtick": None}
    ticks |= {"ticksuffix": view.suffix, "tickformat": "~s" if view.suffix else ""}
    if view.log and (sent > 0).any():
        ticks |= log_bytes(sent)
    if view.suffix == "s":
        ticks |= time_ticks(sent)
    if view.x is None:
        ticks["dtick"] = round_ticks(runs)
    kind = "log" if view.log else "linear"
    return {"title": {"text": view.axis, "standoff": 8}, "type": kind, "autorange": True, **ticks}


def _button(view: View, drawn: Lines, axis: dict[str, Any]) -> dict[str, Any]:
    """What the choice of a view changes in each trace, bands first, and in the x axis."""
    bands = [(*outline(points), None, None) for _, points in _bands(drawn)]
    lines = [(c.x, c.mean, c.n, on_hover(group, view.on_hover)) for group, c in drawn]
    x, y, seeds, hover = zip(*bands, *lines, strict=True)
    data: dict[str, Any] = {"x": x, "y": y, "customdata": seeds}
    data = {key: list(map(rounded, values)) for key, values in data.items()}
    layout = {f"xaxis.{key}": value for key, value in axis.items()}
    restyled = {**data, "hovertemplate": list(hover)}
    return {"label": view.name, "method": "update", "args": [restyled, layout]}
