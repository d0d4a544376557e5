"""Panel: which arrays of the model the bytes were about."""

from __future__ import annotations

import html
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import takewhile

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from fedsim.dashboards.drawing import Group, groups, note, styled
from fedsim.dashboards.panel import NothingToShow
from fedsim.dashboards.parts import WAYS
from fedsim.records import bytes_by_layer
from fedsim.results import Run
from fedsim.units import human_bytes

order = 23
title = "Bytes by layer"
question = "Which layers were the bytes about? All parts of an array together, means over seeds."
MOST = 25
"""Arrays with a bar of their own; the others are summed."""
LONGEST = 44
"""Characters of an array's name."""


def draw(runs: Sequence[Run]) -> go.Figure:
    """Draw one bar for each array, run and direction."""
    counted = {g.label: _counted(g) for g in groups(runs)}
    drawn = [g for g in groups(runs) if any(counted[g.label].values())]
    if not drawn:
        raise NothingToShow("No run has counted its bytes by layer; codec.by_layer: true does.")
    largest = _sum([ways[way] for ways in counted.values() for way in WAYS])
    most = MOST if len(largest) > MOST + 1 else MOST + 1  # a single one is not "others"
    names = sorted(largest, key=lambda name: -largest[name])[:most]
    figure = make_subplots(1, 2, shared_yaxes=True, subplot_titles=list(WAYS.values()))
    for group in drawn:
        for column, way in enumerate(WAYS, start=1):
            figure.add_trace(_bar(group, counted[group.label][way], names, column), 1, column)
    rows = len(names) + (len(largest) > most)
    styled(figure, height=220 + rows * max(24, 10 * len(drawn)))
    figure.update_layout(barmode="group")
    figure.update_xaxes(title={"text": "bytes of the run"}, tickformat="~s", ticksuffix="B")
    figure.update_yaxes(autorange="reversed")
    figure.update_yaxes(title={"text": "array"}, col=1)
    if len(largest) > most:
        note(figure, f"The {len(largest) - most} smallest arrays are summed in the last bar.")
    return figure


def _bar(group: Group, counted: Mapping[str, float], names: Sequence[str], column: int) -> go.Bar:
    values = {label: counted.get(name, 0.0) for name, label in _shorter(names).items()}
    rest = sum(n for name, n in counted.items() if name not in names)
    if rest:
        values["all others"] = rest
    return go.Bar(
        x=list(values.values()),
        y=list(values),
        name=group.name,
        orientation="h",
        legendgroup=group.label,
        showlegend=column == 1,
        marker={"color": group.colour},
        customdata=[human_bytes(n) for n in values.values()],
        hovertemplate="%{y}<br>%{customdata}",
    )


def _shorter(names: Sequence[str]) -> dict[str, str]:
    """Names without what all begin with, escaped, for figures read them as markup.

    >>> _shorter(["model.layer.0.w", "model.layer.1.w"])
    {'model.layer.0.w': '0.w', 'model.layer.1.w': '1.w'}
    """
    parts = [name.split(".") for name in names]
    common = takewhile(lambda same: len(set(same)) == 1, zip(*parts, strict=False))
    start = min(len(list(common)), min(map(len, parts)) - 1)
    whole = {name: ".".join(part[start:]) for name, part in zip(names, parts, strict=True)}
    cut = {name: _middle(text) for name, text in whole.items()}
    labels = cut if len(set(cut.values())) == len(names) else whole
    return {name: html.escape(label, quote=False) for name, label in labels.items()}


def _middle(name: str) -> str:
    """A long name without its middle."""
    half = LONGEST // 2
    return name if len(name) <= LONGEST else f"{name[:half]}…{name[-half:]}"


def _counted(group: Group) -> dict[str, dict[str, float]]:
    """Mean bytes over seeds by direction and array."""
    share = 1 / len(group.runs)
    return {
        way: _sum(
            [
                {name: share * sum(parts.values()) for name, parts in layers.items()}
                for run in group.runs
                if (layers := bytes_by_layer(run.overview.get("totals") or {}, way))
            ]
        )
        for way in WAYS
    }


def _sum(terms: Sequence[Mapping[str, float]]) -> dict[str, float]:
    total: defaultdict[str, float] = defaultdict(float)
    for term in terms:
        for name, n in term.items():
            total[name] += n
    return dict(total)
