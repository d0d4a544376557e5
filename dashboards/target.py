"""Panel: what a target score costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from fedsim.dashboards.axes import time_ticks
from fedsim.dashboards.costs import BYTES, ENERGY, VIRTUAL, WALL, Cost, best, comparable, scores
from fedsim.dashboards.drawing import Group, groups, note, rounded, slider, styled
from fedsim.dashboards.panel import NothingToShow
from fedsim.results import Run

order = 12
title = "Cost to target"
question = (
    "What does it cost to reach a score? The cost of the first moment at which the score is "
    "reached, on a straight line between two tests; bars are means over the seeds that reach it."
)
SHARES = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 1.0)
"""Targets of the slider: how far from the start to the best score of any run."""
FIRST = 5
"""The share that is shown first."""


def draw(runs: Sequence[Run], *, target: float | None = None) -> go.Figure:
    """Draw a bar per group and cost, with a slider over targets.

    Args:
        runs: What to draw.
        target: The score to reach, in place of the slider.
    """
    drawn, left_out = comparable(groups(runs))
    if not drawn:
        raise NothingToShow("No run has been evaluated yet.")
    costs = [
        c
        for c in (BYTES, VIRTUAL, ENERGY, WALL)
        if any(c.so_far(r).positive for g in drawn for r in g.runs)
    ]
    if not costs:
        raise NothingToShow("No run has spent anything yet.")
    targets = _targets(drawn) if target is None else [target]
    choices = [[_bar(drawn, cost, score) for cost in costs] for score in targets]
    first = min(FIRST, len(targets) - 1)
    figure = _figure(costs, choices[first], len(drawn))
    metric = drawn[0].runs[0].key_metric[0]
    if target is None:
        steps = [_step(score, costs, bars) for score, bars in zip(targets, choices, strict=True)]
        slider(figure, f"target, {metric}: ", steps, first)
    else:
        note(figure, f"Target: {metric} {target:.4g}.")
    if left_out:
        note(figure, left_out)
    return figure


def cost_to(run: Run, cost: Cost, target: float) -> float | None:
    """What the run had spent when its score first reached the target; None if it never did.

    Between the last test below the target and the first at or above it, score and cost are taken
    to lie on a straight line. Tests that were not finite are passed over.
    """
    so_far, tested = cost.so_far(run), scores(run).finite()
    if not len(so_far.rounds):
        return None
    spent = so_far.at(tested.rounds)
    sign = -1.0 if run.key_metric[1] == "min" else 1.0
    (reached,) = np.nonzero(sign * tested.values >= sign * target)
    if not len(reached):
        return None
    i = int(reached[0])
    if i == 0:
        return float(spent[0])
    low, high = tested.values[i - 1], tested.values[i]
    part = (target - low) / (high - low)
    return float(spent[i - 1] + part * (spent[i] - spent[i - 1]))


def _targets(drawn: Sequence[Group]) -> list[float]:
    """Scores from the start to the best of any run, rounded for reading but never past the best."""
    tested = [scores(run).finite().values for group in drawn for run in group.runs]
    known = [values for values in tested if len(values)]
    mode = drawn[0].runs[0].key_metric[1]
    top = best([best(values.tolist(), mode) for values in known], mode)
    start = float(np.median([values[0] for values in known]))
    exact = [start + share * (top - start) for share in SHARES]
    return list(dict.fromkeys([*(float(f"{score:.3g}") for score in exact[:-1]), top]))


def _bar(drawn: Sequence[Group], cost: Cost, target: float) -> dict[str, Any]:
    """The bars of one cost: a mean for each group, its range, and words."""
    lengths, more, less, words, hovers = [], [], [], [], []
    for group in drawn:
        reached = [c for run in group.runs if (c := cost_to(run, cost, target)) is not None]
        mean = float(np.mean(reached)) if reached else 0.0
        some = f" ({len(reached)} of {len(group.runs)} seeds)"
        partly = some if 0 < len(reached) < len(group.runs) else ""
        unmeasured = not any(len(cost.so_far(run).rounds) for run in group.runs)
        missing = "not measured" if unmeasured else "not reached"
        lengths.append(mean)
        several = len(reached) > 1
        more.append(max(reached) - mean if several else None)
        less.append(mean - min(reached) if several else None)
        words.append(f"{cost.human(mean)}{partly}" if reached else missing)
        hovers.append(f"{mean:,.6g} {cost.unit}{partly}" if reached else missing)
    return {
        "x": rounded(lengths),
        "error_x.array": rounded(more),
        "error_x.arrayminus": rounded(less),
        "text": words,
        "customdata": hovers,
        "y": [group.short for group in drawn],
        "colours": [group.colour for group in drawn],
    }


def _figure(costs: Sequence[Cost], bars: Sequence[dict[str, Any]], lines: int) -> go.Figure:
    names = [cost.name for cost in costs]
    figure = make_subplots(
        1, len(costs), shared_yaxes=True, subplot_titles=names, horizontal_spacing=0.05
    )
    for column, (cost, bar) in enumerate(zip(costs, bars, strict=True), start=1):
        trace = go.Bar(
            x=bar["x"],
            y=bar["y"],
            orientation="h",
            width=0.45,
            offset=0,  # below the words
            name=cost.name,
            marker={"color": bar["colours"], "opacity": 0.5},
            error_x={
                "array": bar["error_x.array"],
                "arrayminus": bar["error_x.arrayminus"],
                "color": "#888",
            },
            customdata=bar["customdata"],
            hovertemplate="%{y}: %{customdata}<extra></extra>",
        )
        words = go.Scatter(
            x=[0] * lines,
            y=bar["y"],
            mode="text",
            text=bar["text"],
            textposition="top right",
            cliponaxis=False,
            name=cost.name,
            hoverinfo="skip",
        )
        figure.add_traces([trace, words], rows=[1, 1], cols=[column, column])
        unit = "" if cost.unit == "s" else f" ({cost.unit})"  # ticks are in minutes or hours, too
        axis = {"title": {"text": f"{cost.name}{unit}"}, "rangemode": "tozero"}
        axis |= {"tickformat": "~s", "ticksuffix": cost.unit, **_ticks(cost, bar)}
        figure.update_xaxes(**axis, row=1, col=column)
    styled(figure, height=180 + 36 * lines)
    figure.update_layout(showlegend=False)
    figure.update_yaxes(autorange="reversed")
    figure.update_yaxes(title={"text": "run"}, row=1, col=1)
    return figure


def _ticks(cost: Cost, bar: dict[str, Any]) -> dict[str, Any]:
    """Ticks of the axis of a cost; every step sets them."""
    ends = bar["x"] + np.nan_to_num(bar["error_x.array"])
    return time_ticks(ends, most=3) if cost.unit == "s" else {}


def _step(score: float, costs: Sequence[Cost], bars: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Bars and their words are drawn in turn; words stay at 0."""
    keys = ("x", "customdata", "error_x.array", "error_x.arrayminus")
    data = {key: [value for bar in bars for value in (bar[key], None)] for key in keys}
    data["x"] = [value for bar in bars for value in (bar["x"], [0] * len(bar["x"]))]
    data["text"] = [value for bar in bars for value in (None, bar["text"])]
    layout = {
        f"xaxis{i}.{key}".replace("xaxis1.", "xaxis."): value
        for i, (cost, bar) in enumerate(zip(costs, bars, strict=True), start=1)
        for key, value in _ticks(cost, bar).items()
    }
    return {"label": f"{score:.4g}", "method": "update", "args": [data, layout]}
