"""Small multiples: one quantity over rounds per subplot, a line per group in each."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from fedsim.dashboards.axes import number, round_ticks, whole_ticks
from fedsim.dashboards.curves import Column
from fedsim.dashboards.drawing import Group, add_lines, styled
from fedsim.results import Run

ROW_HEIGHT = 270
DECADES = 2


@dataclass(frozen=True)
class Small:
    """One subplot.

    Attributes:
        name: Its title.
        axis: Title of the y axis: the unit.
        values: The quantity of a run by round.
        unit: Suffix of SI numbers; empty for plain ones.
        whole: Whether values are counts, which have no fractions.
        x: Title of the x axis, where it is not rounds.
        spans: Whether a logarithmic axis suits numbers that span ``DECADES`` or more.
    """

    name: str
    axis: str
    values: Callable[[Run], Column]
    unit: str = ""
    whole: bool = False
    x: str = "round"
    spans: bool = False


def multiples(runs: Sequence[Run], drawn: Sequence[Group], smalls: Sequence[Small]) -> go.Figure:
    """Draw some quantities, two in a row, three when there are many."""
    columns = min(len(smalls), 2 if len(smalls) <= 4 else 3)
    rows = math.ceil(len(smalls) / columns)
    places = [divmod(i, columns) for i in range(len(smalls))]
    cells: list[list[dict[str, Any] | None]]
    cells = [[{} if (r, c) in places else None for c in range(columns)] for r in range(rows)]
    figure = make_subplots(
        rows,
        columns,
        specs=cells,
        subplot_titles=[html.escape(small.name, quote=False) for small in smalls],
        vertical_spacing=0.3 / rows,
        horizontal_spacing=0.09,
    )
    tick, named = round_ticks(runs), set[str]()
    for (row, column), small in zip(places, smalls, strict=True):
        place = (row + 1, column + 1)
        value = number("y", small.unit) if small.unit else "%{y:.5~g}"
        hover = f"{html.escape(small.x.split(',')[0], quote=False)} %{{x:.5~r}}: {value}"
        add_lines(figure, drawn, small.values, hover, place, named)
        x = {"text": html.escape(small.x, quote=False)}
        step = tick if small.x == "round" else whole_ticks(map(small.values, runs))
        figure.update_xaxes(title=x, dtick=step, row=place[0], col=place[1])
        _set_y(figure, small, place)
    return styled(figure, height=110 + ROW_HEIGHT * rows)


def _set_y(figure: go.Figure, small: Small, place: tuple[int, int]) -> None:
    row, column = place
    axis: dict[str, Any] = {"title": {"text": html.escape(small.axis, quote=False)}}
    if small.unit:
        axis |= {"tickformat": "~s", "ticksuffix": small.unit}
    else:  # no "200µ"
        axis["exponentformat"] = "power"
    if small.unit or small.whole:
        axis["rangemode"] = "tozero"
    low, high = _extent(figure, place)
    if small.spans and low > 0 and high >= 10**DECADES * low:
        axis |= {"type": "log", "dtick": 1}
    elif low >= 0 and not (small.unit or small.whole):  # a constant 0 would be between -1 and 1
        axis["rangemode"] = "nonnegative"
    if small.whole:  # no fractions of a client
        traces = figure.select_traces({"type": "scatter"}, row=row, col=column)
        top = 1.1 * max([1.0, *(value for trace in traces for value in trace.y)])
        axis |= {"range": [0, top], "dtick": 1 if top < 8 else None}
    figure.update_yaxes(**axis, row=row, col=column)  # once: each call takes plotly milliseconds


def _extent(figure: go.Figure, place: tuple[int, int]) -> tuple[float, float]:
    """The smallest and the largest number of a subplot; two zeros where there is none."""
    row, column = place
    traces = list(figure.select_traces({"type": "scatter"}, row=row, col=column))
    values = np.concatenate([np.asarray(trace.y, float) for trace in traces])
    known = values[np.isfinite(values)]
    return (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
