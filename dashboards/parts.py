"""Panel: what the bytes on the wire were."""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import fmean

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from fedsim.dashboards.drawing import COLOURS, Group, groups, styled
from fedsim.dashboards.panel import NothingToShow
from fedsim.results import Run
from fedsim.units import human_bytes

order = 22
title = "Bytes by part"
question = "What were the bytes: values, positions, scales, headers, catching up on missed rounds?"
WAYS = {"up": "up: clients to server", "down": "down: server to clients"}
PARTS = ("values", "indices", "scales", "seeds", "header", "catchup", "plan")
PATTERNS = ("", "/", "x")
"""One for each time that the colours begin again."""
KEY = re.compile(r"comm/(up|down)_([a-z]+)_bytes")


def draw(runs: Sequence[Run]) -> go.Figure:
    """Draw one bar a run and direction, stacked from its parts (means over seeds)."""
    drawn = [g for g in groups(runs) if any(_parts(run) for run in g.runs)]
    if not drawn:
        raise NothingToShow("No run has counted its bytes by part.")
    figure = make_subplots(1, 2, shared_yaxes=True, subplot_titles=list(WAYS.values()))
    known = {part for g in drawn for run in g.runs for _, part in _parts(run)}
    for part in _ordered(known):
        i = _ordered({*PARTS, *known}).index(part)  # the same look on every page
        pattern = {"shape": PATTERNS[i // len(COLOURS) % len(PATTERNS)], "fillmode": "overlay"}
        marker = {"color": COLOURS[i % len(COLOURS)], "pattern": {**pattern, "fgcolor": "#222"}}
        for column, way in enumerate(WAYS, start=1):
            means = [_mean(group, way, part) for group in drawn]
            bar = go.Bar(
                x=means,
                y=[group.short for group in drawn],
                name=part,
                orientation="h",
                legendgroup=part,
                showlegend=column == 1,
                marker=marker,
                customdata=[human_bytes(value) for value in means],
                hovertemplate="%{customdata}",
            )
            figure.add_trace(bar, row=1, col=column)
    styled(figure, height=220 + 30 * len(drawn))
    figure.update_layout(barmode="stack")
    figure.update_xaxes(title={"text": "bytes of the run"}, tickformat="~s", ticksuffix="B")
    figure.update_xaxes(
        range=[0, 1.05 * max(_total(group, way) for group in drawn for way in WAYS)]
    )
    figure.update_yaxes(autorange="reversed")
    figure.update_yaxes(title={"text": "run"}, col=1)
    return figure


def _parts(run: Run) -> dict[tuple[str, str], float]:
    """Bytes of a run by direction and part."""
    totals = run.overview.get("totals") or {}
    found = {match.groups(): value for k, value in totals.items() if (match := KEY.fullmatch(k))}
    return {(way, part): float(value) for (way, part), value in found.items() if value}


def _total(group: Group, way: str) -> float:
    return sum(
        _mean(group, way, part) for part in {p for run in group.runs for _, p in _parts(run)}
    )


def _mean(group: Group, way: str, part: str) -> float:
    return fmean(_parts(run).get((way, part), 0.0) for run in group.runs)


def _ordered(parts: set[str]) -> list[str]:
    return [p for p in PARTS if p in parts] + sorted(parts - {*PARTS})
