"""Panel: the best score within a budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from fedsim.dashboards.axes import metric_label
from fedsim.dashboards.costs import BYTES, ENERGY, VIRTUAL, WALL, Cost, best, comparable, scores
from fedsim.dashboards.drawing import Group, groups, note, rounded, slider, styled
from fedsim.dashboards.panel import NothingToShow
from fedsim.results import Run

order = 14
title = "Score within a budget"
question = (
    "Which score does each run reach with only so many bytes, so much time or energy? The best "
    "test made before the budget is spent; means over seeds, with the range of the seeds."
)
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 1000.0)
"""Budgets of the slider, in shares of what the cheapest run spent in all."""


def draw(
    runs: Sequence[Run],
    *,
    megabytes: float | None = None,
    hours: float | None = None,
    joules: float | None = None,
) -> go.Figure:
    """Draw the best score of each group within a budget of each kind, with a slider over budgets.

    Args:
        runs: What to draw.
        megabytes: Budget of bytes in place of the slider; 1 MB is 1e6 bytes.
        hours: Budget of virtual time, and of wall time.
        joules: Budget of energy.
    """
    drawn, left_out = comparable(groups(runs))
    if not drawn:
        raise NothingToShow("No run has been evaluated yet.")
    spent = {
        cost: totals
        for cost in (BYTES, VIRTUAL, ENERGY, WALL)
        if (totals := [t for g in drawn for run in g.runs if (t := _total(cost, run)) > 0])
    }
    if not spent:
        raise NothingToShow("No run has spent anything yet.")
    seconds = None if hours is None else hours * 3600
    given = {BYTES: None if megabytes is None else megabytes * 1e6, ENERGY: joules}
    given |= {VIRTUAL: seconds, WALL: seconds}
    fixed = {cost: value for cost in spent if (value := given[cost]) is not None}
    figure, steps, first = _drawn_with_steps(drawn, spent, fixed)
    if len(fixed) < len(spent):
        slider(figure, "share of what the cheapest run spent in all: ", steps, first)
    note(figure, "Runs without a point did not measure this cost, or made no test in time.")
    if left_out:
        note(figure, left_out)
    return figure


def best_within(run: Run, cost: Cost, budget: float) -> float | None:
    """The best score of the tests made before more than the budget was spent; None without any."""
    so_far, tested = cost.so_far(run), scores(run).finite()
    if not len(so_far.rounds):
        return None
    affordable = tested.values[so_far.at(tested.rounds) <= budget]
    return best(affordable.tolist(), run.key_metric[1]) if len(affordable) else None


def _total(cost: Cost, run: Run) -> float:
    values = cost.so_far(run).values
    return float(values[-1]) if len(values) else 0.0


def _drawn_with_steps(
    drawn: Sequence[Group], spent: dict[Cost, list[float]], fixed: dict[Cost, float]
) -> tuple[go.Figure, list[dict[str, Any]], int]:
    """The figure, the steps of its slider, and the step that it shows."""
    largest = max(max(totals) / min(totals) for totals in spent.values())
    below = [share for share in SHARES if share < largest]
    shares = [*below, *([s for s in SHARES if s >= largest][:1] or [largest])]
    first = shares.index(1.0)
    choices = []
    for share in shares:
        budgets = {cost: fixed.get(cost, share * min(spent[cost])) for cost in spent}
        choices.append(({c: _points(drawn, c, b) for c, b in budgets.items()}, budgets))
    figure = _figure(drawn, *choices[first], _extent(choices))
    steps = [_step(share, *choice) for share, choice in zip(shares, choices, strict=True)]
    return figure, steps, first


def _points(drawn: Sequence[Group], cost: Cost, budget: float) -> dict[str, Any]:
    """One point a group: mean over seeds with its range, and words; NaN where there is none."""
    means, more, less, words = [], [], [], []
    for group in drawn:
        found = [s for run in group.runs if (s := best_within(run, cost, budget)) is not None]
        mean = float(np.mean(found)) if found else float("nan")
        means.append(mean)
        more.append(max(found, default=mean) - mean)
        less.append(mean - min(found, default=mean))
        words.append(f"{mean:.4g}" if found else "no test")
    return {
        "x": rounded(means),
        "error_x.array": rounded(more),
        "error_x.arrayminus": rounded(less),
        "text": words,
    }


def _heading(cost: Cost, budget: float) -> str:
    return f"{cost.name}: {cost.human(budget)}"


def _extent(choices: Sequence[tuple[dict[Cost, dict[str, Any]], dict[Cost, float]]]) -> list[float]:
    """A range for all scores and their bars in all steps, so that the slider moves points only."""
    ends = [
        np.concatenate([p["x"] - p["error_x.arrayminus"], p["x"] + p["error_x.array"]])
        for points, _ in choices
        for p in points.values()
    ]
    known = np.concatenate(ends)
    low, high = float(np.nanmin(known)), float(np.nanmax(known))
    pad = 0.12 * (high - low) or 0.1 * abs(high) or 1.0
    return [low - pad, high + pad]


def _figure(
    drawn: Sequence[Group],
    points: dict[Cost, dict[str, Any]],
    budgets: dict[Cost, float],
    extent: list[float],
) -> go.Figure:
    figure = make_subplots(
        1,
        len(points),
        shared_yaxes=True,
        horizontal_spacing=0.03,
        subplot_titles=[_heading(cost, budget) for cost, budget in budgets.items()],
    )
    for column, (cost, values) in enumerate(points.items(), start=1):
        trace = go.Scatter(
            x=values["x"],
            y=[group.short for group in drawn],
            name=cost.name,
            mode="markers+text",
            text=values["text"],
            textposition="top center",
            cliponaxis=False,
            marker={
                "size": 10,
                "color": [group.colour for group in drawn],
                "symbol": [group.symbol for group in drawn],
            },
            error_x={
                "array": values["error_x.array"],
                "arrayminus": values["error_x.arrayminus"],
                "color": "#888",
            },
            hovertemplate="%{y}: %{x:.7g}<extra></extra>",
        )
        figure.add_trace(trace, row=1, col=column)
    styled(figure, height=210 + 34 * len(drawn))
    figure.update_layout(showlegend=False)
    label = metric_label(drawn[0].runs[0].key_metric[0]).split(" (")[0]
    figure.update_xaxes(title={"text": f"best {label}"}, range=extent)
    figure.update_yaxes(range=[len(drawn) - 0.5, -0.9], type="category")
    figure.update_yaxes(title={"text": "run"}, row=1, col=1)
    return figure


def _step(
    share: float, points: dict[Cost, dict[str, Any]], budgets: dict[Cost, float]
) -> dict[str, Any]:
    keys = ("x", "text", "error_x.array", "error_x.arrayminus")
    data = {key: [values[key] for values in points.values()] for key in keys}
    titles = {
        f"annotations[{i}].text": _heading(cost, budget)
        for i, (cost, budget) in enumerate(budgets.items())
    }
    label = f"{100 * share:.3g} %" if share < 10 else f"{share:,.0f} x"
    return {"label": label, "method": "update", "args": [data, titles]}
