"""Panel: what the run would have taken on its devices."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from fedsim.dashboards.axes import number, round_ticks, time_ticks
from fedsim.dashboards.curves import Column, by_round, cumulative
from fedsim.dashboards.drawing import Group, add_lines, groups, rgba, styled
from fedsim.dashboards.panel import NothingToShow
from fedsim.results import Run

order = 25
title = "Devices"
question = (
    "How long would the rounds have taken on the clients' devices, how much energy did they draw, "
    "and which clients were left out? Times are virtual; energy includes that of clients whose "
    "work was lost."
)
LOST = ("late", "dropped", "interrupted", "oom", "void")
WORDS = {"oom": "out of memory", "void": "too few others"}
CURVES = {"time/virtual_s": "virtual time so far", "energy/joules": "energy so far, all clients"}
CURVE_HEIGHT, GAP = 240, 110
UNITS = {"time/virtual_s": "s", "energy/joules": "J"}


def draw(runs: Sequence[Run]) -> go.Figure:
    """Draw virtual time and energy over rounds, and bars of clients by what became of them."""
    timed = [
        g for g in groups(runs) if any(by_round(run, "time/virtual_s").known for run in g.runs)
    ]
    if not timed:
        raise NothingToShow("No run has devices; see the scenario key `devices`.")
    bars = 40 + 26 * len(timed)
    titles = [*CURVES.values(), "clients chosen over the run, by what became of them"]
    figure = make_subplots(
        2,
        2,
        specs=[[{}, {}], [{"colspan": 2}, None]],
        subplot_titles=titles,
        row_heights=[CURVE_HEIGHT, bars],
        vertical_spacing=GAP / (CURVE_HEIGHT + GAP + bars),
        horizontal_spacing=0.08,
    )
    named: set[str] = set()
    for column, key in enumerate(CURVES, start=1):
        hover = f"round %{{x}}: {number('y', UNITS[key])}"
        so_far = partial(_so_far, key=key)
        add_lines(figure, timed, so_far, hover, (1, column), named, so_far=True)
    _add_outcomes(figure, timed)
    styled(figure, height=120 + CURVE_HEIGHT + GAP + bars)
    figure.update_xaxes(title={"text": "round"}, dtick=round_ticks(runs), row=1)
    for column, (key, unit) in enumerate(UNITS.items(), start=1):
        figure.update_yaxes(
            title={"text": CURVES[key] + ("" if unit == "s" else f" ({unit})")},
            tickformat="~s",
            ticksuffix=unit,
            row=1,
            col=column,
        )
    seconds = [_so_far(run, "time/virtual_s").values for g in timed for run in g.runs]
    figure.update_yaxes(**time_ticks(np.concatenate(seconds)), row=1, col=1)
    figure.update_yaxes(rangemode="tozero", row=1)
    return figure


def _so_far(run: Run, key: str) -> Column:
    return cumulative(run, key).since(1)


def _add_outcomes(figure: go.Figure, timed: Sequence[Group]) -> None:
    """One stacked bar per group; what is left out is hatched."""
    longest = max(_total(group.runs, "selected") for group in timed)
    for group in timed:
        counts = {"completed": _total(group.runs, "completed")}
        counts |= {name: _total(group.runs, name) for name in (*LOST, "failed")}
        for place, (name, count) in enumerate(counts.items()):
            if count:
                bar = go.Bar(
                    x=[count],
                    y=[group.short],
                    name=group.name,
                    orientation="h",
                    legendgroup=group.label,
                    showlegend=False,
                    text=WORDS.get(name, name) if count > 0.1 * longest else "",
                    textposition="inside",
                    textangle=0,
                    constraintext="none",
                    marker={
                        "color": rgba(group.colour, 0.8 if place == 0 else 0.35),
                        "line": {"color": group.colour, "width": 1},
                    },
                    hovertemplate=f"{WORDS.get(name, name)}: %{{x:,}}<extra></extra>",
                )
                figure.add_trace(bar, row=2, col=1)
    figure.update_layout(barmode="stack")
    figure.update_xaxes(title={"text": "clients"}, row=2, col=1)
    figure.update_yaxes(autorange="reversed", title={"text": "run"}, row=2, col=1)


def _total(runs: Sequence[Run], name: str) -> float:
    return float(sum(by_round(run, f"clients/{name}").values.sum() for run in runs))
