"""Panel: which runs no other run beats in both score and cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from fedsim.dashboards.axes import log_bytes, metric_label, time_ticks
from fedsim.dashboards.costs import COSTS, Cost, best, comparable, scores
from fedsim.dashboards.drawing import Group, buttons, groups, note, rounded, styled
from fedsim.dashboards.panel import NothingToShow
from fedsim.results import Run

order = 16
title = "Frontier"
question = (
    "Which runs does no other beat, at a lower or equal cost and a better or equal score? Each "
    "point is a run's best score and what had been spent by then (means over seeds); runs that "
    "another one beats are grey."
)
GREY = "#9a9a9a"


@dataclass(frozen=True)
class Point:
    """A group: the means over its seeds."""

    group: Group
    cost: float
    score: float


def draw(runs: Sequence[Run], *, cost: str = "bytes") -> go.Figure:
    """Draw a point per group, with a button for each cost.

    Args:
        runs: What to draw.
        cost: The cost that is shown first, by its name in ``costs.COSTS``.
    """
    drawn, left_out = comparable(groups(runs))
    if not drawn:
        raise NothingToShow("No run has been evaluated yet.")
    mode = drawn[0].runs[0].key_metric[1]
    every = {kind: _points(drawn, kind) for kind in COSTS}
    views = {kind: points for kind, points in every.items() if any(p.cost > 0 for p in points)}
    if not views:
        raise NothingToShow("No run has spent anything yet.")
    first = next((i for i, kind in enumerate(views) if kind.name == cost), 0)
    traces = [_traces(drawn, kind, points, mode) for kind, points in views.items()]
    axes = [_axis(kind, points) for kind, points in views.items()]
    figure = styled(go.Figure(traces[first]), height=480)
    buttons(figure, list(map(_button, views, traces, axes)), first)
    figure.update_xaxes(**axes[first])
    metric = metric_label(drawn[0].runs[0].key_metric[0])
    figure.update_yaxes(title={"text": f"best {metric}"})
    reached = {point.score for point in next(iter(views.values()))}
    if len(reached) == 1:  # plotly would draw one unit to either side
        (alone,) = reached
        figure.update_yaxes(range=sorted([0.9 * alone, 1.1 * alone or 1.0]))
    if left_out:
        note(figure, left_out)
    return figure


def _points(drawn: Sequence[Group], kind: Cost) -> list[Point]:
    found = []
    for group in drawn:
        pairs = [p for run in group.runs if (p := at_best(run, kind)) is not None]
        if pairs:
            spent, score = np.mean(pairs, axis=0)
            found.append(Point(group, float(spent), float(score)))
    return found


def at_best(run: Run, kind: Cost) -> tuple[float, float] | None:
    """What had been spent at the first of the run's best scores, and that score."""
    so_far, tested = kind.so_far(run), scores(run).finite()
    if not len(so_far.rounds) or not len(tested.rounds):
        return None
    top = best(tested.values.tolist(), run.key_metric[1])
    place = int(np.argmax(tested.values == top))
    return float(so_far.at(tested.rounds)[place]), top


def frontier(points: Sequence[Point], mode: str) -> list[Point]:
    """Points that no other one dominates, cheapest first; equal points are all on it.

    One dominates another when it is at least as good in both score and cost, and better in one.
    """
    sign = -1.0 if mode == "min" else 1.0
    kept = []
    for point in points:
        dominated = any(
            other.cost <= point.cost
            and sign * other.score >= sign * point.score
            and (other.cost, other.score) != (point.cost, point.score)
            for other in points
        )
        if not dominated:
            kept.append(point)
    return sorted(kept, key=lambda point: (point.cost, point.score))


def _traces(
    drawn: Sequence[Group], kind: Cost, points: Sequence[Point], mode: str
) -> list[go.Scatter]:
    """The line of the frontier, then one point per group; without one, it is empty."""
    front = frontier(points, mode)
    shown = [p for p in front if p.cost > 0 or not _log(points)]
    line = go.Scatter(
        x=np.array([p.cost for p in shown]),
        y=np.array([p.score for p in shown]),
        mode="lines",
        line={"shape": "hv", "color": "#888", "width": 1.5},
        name="frontier",
        zorder=0,
        hoverinfo="skip",
    )
    by_label = {p.group.label: p for p in points}
    labels = {p.group.label for p in front}
    return [line, *(_dot(g, by_label.get(g.label), g.label in labels, kind) for g in drawn)]


def _dot(group: Group, point: Point | None, on_front: bool, kind: Cost) -> go.Scatter:
    place = "" if on_front else "<br>another run is at least as good and cheaper"
    exact = f"{point.cost:,.6g} {kind.unit}, {point.score:.6g}" if point else ""
    return go.Scatter(
        x=np.array([point.cost] if point else []),
        y=np.array([point.score] if point else []),
        mode="markers",
        name=group.name,
        marker={
            "size": 12 if on_front else 9,
            "symbol": group.symbol,
            "color": group.colour if on_front else GREY,
        },
        zorder=2 if on_front else 1,
        hovertemplate=f"<b>%{{fullData.name}}</b><br>{exact}{place}<extra></extra>",
    )


def _log(points: Sequence[Point]) -> bool:
    """Whether costs are so far apart that a logarithmic axis shows them better."""
    costs = [p.cost for p in points if p.cost > 0]
    return len(costs) == len(points) and max(costs) > 20 * min(costs)


def _axis(kind: Cost, points: Sequence[Point]) -> dict[str, Any]:
    """Properties of the x axis; every view sets all of them, so that buttons undo each other."""
    log = _log(points)
    ticks: dict[str, Any] = {"tickmode": None, "tickvals": None, "ticktext": None}
    if log and kind.unit == "B":
        ticks |= log_bytes([p.cost for p in points])
    if kind.unit == "s":
        ticks |= time_ticks([p.cost for p in points], log=log)
    suffix = " (log scale)" if log else ""
    alone = {} if len({p.cost for p in points}) > 1 else {"range": [0, 2 * points[0].cost]}
    return {
        "title": {"text": f"{kind.axis}, until the best score{suffix}", "standoff": 8},
        "type": "log" if log else "linear",
        "autorange": not alone,
        **alone,
        "tickformat": "~s",
        "ticksuffix": kind.unit,
        **ticks,
    }


def _button(kind: Cost, traces: Sequence[go.Scatter], axis: dict[str, Any]) -> dict[str, Any]:
    data: dict[str, Any] = {key: [rounded(trace[key]) for trace in traces] for key in ("x", "y")}
    data["marker.color"] = [trace.marker.color for trace in traces]
    data["zorder"] = [trace.zorder for trace in traces]
    data["marker.size"] = [trace.marker.size for trace in traces]
    data["hovertemplate"] = [trace.hovertemplate for trace in traces]
    layout = {f"xaxis.{key}": value for key, value in axis.items()}
    return {"label": kind.name, "method": "update", "args": [data, layout]}
