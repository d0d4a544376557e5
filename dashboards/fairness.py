"""Panel: how evenly clients fare."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from fedsim.client_table import ClientTable
from fedsim.dashboards.axes import metric_label
from fedsim.dashboards.costs import comparable
from fedsim.dashboards.curves import Floats
from fedsim.dashboards.drawing import Group, first_groups, groups, note, rgba, styled
from fedsim.dashboards.panel import NothingToShow
from fedsim.results import Run

order = 32
title = "Fairness"
question = (
    "How far apart are the clients, how do the worst tenth fare, and how unequal is it (Gini: 0 is "
    "equal)? All seeds together in the boxes; means over seeds beside them."
)
MAX_POINTS = 200
"""Boxes of more clients show outliers only."""
SCORES = (
    "SELECT score FROM clients WHERE stage = 'evaluate' AND isfinite(score) AND round = "
    "(SELECT max(round) FROM clients WHERE stage = 'evaluate') ORDER BY client, score"
)
REPORTS = (
    "SELECT arg_max({0}, round) FROM clients WHERE coalesce(stage, 'train') = 'train' AND "
    "coalesce(status, 'ok') = 'ok' AND isfinite({0}) AND round > 0.9 * (SELECT max(round) FROM "
    "clients) GROUP BY client ORDER BY client"
)


@dataclass(frozen=True)
class Kind:
    """What of a client is shown: the first of ``kinds`` that any run has."""

    sql: str
    axis: str
    mode: str


def kinds(run: Run) -> tuple[Kind, Kind, Kind]:
    """From the best to the poorest answer to the question."""
    name, mode = run.key_metric
    own = metric_label(name.replace("eval/", "personal/", 1))
    return (
        Kind(SCORES, own, mode),
        Kind(REPORTS.format("train_loss"), "train loss of a client (mean per example)", "min"),
        Kind(REPORTS.format("num_examples"), "training examples of a client", "max"),
    )


def draw(runs: Sequence[Run]) -> go.Figure:
    """Draw a box of each group's clients, the mean of its worst tenth, and its Gini coefficient."""
    everyone = groups(runs)
    drawn, left_out = comparable(everyone)
    drawn, limited = first_groups(drawn or everyone)
    # read together, kept with the runs
    ClientTable.each(run for group in drawn for run in group.runs)
    shown, kind = _measured(drawn)
    figure = _figure(shown, kind)
    missing = len(drawn) - len(shown)
    without = f"{missing} of these runs have no such numbers." if missing else ""
    for text in (left_out, limited, without, WITH_SCORES if kind.sql == SCORES else WITHOUT_SCORES):
        if text:
            note(figure, text)
    return figure


def _measured(drawn: Sequence[Group]) -> tuple[list[tuple[Group, list[Floats]]], Kind]:
    """Numbers of the best kind that any run has: of each group and seed, one per client."""
    for kind in kinds(drawn[0].runs[0]):
        values = [[_values(t, kind.sql) for t in ClientTable.each(g.runs)] for g in drawn]
        shown = [(g, v) for g, v in zip(drawn, values, strict=True) if any(map(len, v))]
        if shown:
            return shown, kind
    raise NothingToShow("No run has finished a round with clients yet.")


WITH_SCORES = "Scores are those of the last test of clients on their own test rows."
WITHOUT_SCORES = (
    "No client was tested on rows of its own (evaluate.personal), so this is what each client "
    "last reported from training, if that was in the last tenth of the rounds."
)


def _values(table: ClientTable, sql: str) -> Floats:
    return np.array([value for (value,) in table.query(sql)], float)


def gini(values: Floats) -> float:
    """Gini coefficient: the mean difference of two clients over twice the mean; 0 is equal.

    >>> float(gini(np.array([1.0, 1.0, 1.0]))), float(gini(np.array([0.0, 0.0, 3.0])))
    (0.0, 0.6666666666666666)
    """
    ordered, n = np.sort(values), len(values)
    total = float(np.sum(ordered))
    if not total:
        return 0.0
    ranks = np.arange(1, n + 1)
    return float(np.sum((2 * ranks - n - 1) * ordered) / (n * total))


def worst_tenth(values: Floats, mode: str) -> float:
    """Mean of the worst tenth of clients, of one at least.

    >>> worst_tenth(np.arange(20.0), "max"), worst_tenth(np.arange(20.0), "min")
    (0.5, 18.5)
    """
    ordered = np.sort(values)[:: -1 if mode == "min" else 1]
    return float(np.mean(ordered[: math.ceil(len(ordered) / 10)]))


def _figure(shown: Sequence[tuple[Group, list[Floats]]], kind: Kind) -> go.Figure:
    figure = make_subplots(
        1,
        3,
        shared_yaxes=True,
        column_widths=[0.6, 0.2, 0.2],
        horizontal_spacing=0.03,
        subplot_titles=["clients", "worst tenth, mean", "Gini coefficient"],
    )
    for group, columns in shown:
        figure.add_trace(_box(group, np.concatenate(columns)), row=1, col=1)
        measured = [column for column in columns if len(column)]
        worst = [worst_tenth(column, kind.mode) for column in measured]
        unequal = [gini(column) for column in measured]
        for column, numbers in enumerate((worst, unequal), start=2):
            figure.add_trace(_dot(group, numbers), row=1, col=column)
    styled(figure, height=210 + 30 * len(shown))
    figure.update_layout(showlegend=False)
    figure.update_xaxes(title={"text": kind.axis}, row=1, col=1)
    figure.update_xaxes(title={"text": "the same unit"}, rangemode="tozero", row=1, col=2)
    figure.update_xaxes(title={"text": "0 to 1"}, rangemode="tozero", row=1, col=3)
    figure.update_yaxes(autorange="reversed")
    figure.update_yaxes(title={"text": "run"}, row=1, col=1)
    return figure


def _box(group: Group, values: Floats) -> go.Box:
    return go.Box(
        x=values,
        y=[group.short] * len(values),
        name=group.short,
        orientation="h",
        boxpoints="all" if len(values) <= MAX_POINTS else "outliers",
        jitter=0.4,
        pointpos=0,
        marker={"color": group.colour, "symbol": group.symbol, "size": 4, "opacity": 0.7},
        line={"color": group.colour},
        fillcolor=rgba(group.colour, 0.2),
        hovertemplate="%{x:.4g}<extra></extra>",
    )


def _dot(group: Group, numbers: Sequence[float]) -> go.Scatter:
    """Mean over seeds, with the range from the lowest to the highest."""
    mean = fmean(numbers)
    return go.Scatter(
        x=[mean],
        y=[group.short],
        name=group.short,
        mode="markers",
        marker={"color": group.colour, "symbol": group.symbol, "size": 9},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [max(numbers) - mean],
            "arrayminus": [mean - min(numbers)],
            "visible": len(numbers) > 1,
            "color": group.colour,
        },
        hovertemplate=f"{group.name}: %{{x:.6g}}<extra></extra>",
    )
