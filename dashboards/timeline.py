"""Panel: one round on the virtual clock, client by client."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from fedsim.client_table import ClientTable
from fedsim.dashboards.axes import time_ticks
from fedsim.dashboards.curves import by_round, cumulative
from fedsim.dashboards.drawing import COLOURS, Group, dropdown, first_groups, groups, note, styled
from fedsim.dashboards.panel import NothingToShow
from fedsim.results import Run

order = 36
title = "Time line of a round"
question = (
    "Where does the time of a round go, and who are the stragglers? Virtual time since the round "
    "began; the dashed line is its end, and work beyond it was lost. Of each run, its first seed."
)
MAX_BARS = 40
"""Clients of one round that are drawn."""
PHASES = {
    "download": COLOURS[0],
    "compute": COLOURS[1],
    "upload": COLOURS[2],
    "waiting, latency": "#9a9a9a",
}
ROWS = (
    'SELECT client, coalesce(status, \'ok\'), device, "time/virtual_s", "time/end_s", '
    'coalesce("time/download_s", 0), coalesce("time/compute_s", 0), coalesce("time/upload_s", 0) '
    "FROM clients WHERE round = {round} AND coalesce(stage, 'train') = 'train' "
    'AND "time/virtual_s" IS NOT NULL ORDER BY 4, 1'
)


LAST = """SELECT max(round) FROM clients WHERE "time/virtual_s" IS NOT NULL AND round <= {round}"""


@dataclass(frozen=True)
class Bar:
    """One client: when it began, in seconds since the round did, and how long each phase took."""

    client: int
    status: str
    device: str
    start: float
    phases: tuple[float, float, float, float]


@dataclass(frozen=True)
class Lane:
    """The round of one group that is drawn."""

    group: Group
    number: int
    bars: list[Bar]
    end: float
    clients: int


def draw(runs: Sequence[Run], *, round: int | None = None) -> go.Figure:
    """Draw bars of download, training and upload, with a menu of the runs.

    Args:
        runs: What to draw.
        round: Which round, for all runs; each run's last one if not given.
    """
    drawn, limited = first_groups(groups(runs))
    lanes = [lane for g in drawn if (lane := _lane(g, round)) is not None]
    if not lanes:
        raise NothingToShow(
            "No run has clients with virtual times"
            + (" yet; see the scenario key `devices`." if round is None else f" in round {round}.")
        )
    figure = go.Figure([t for lane in lanes for t in _traces(lane)])
    for i, trace in enumerate(figure.data):
        trace.visible = i < TRACES
    styled(figure, height=200 + 16 * max(len(lane.bars) for lane in lanes))
    shapes = [_end_line(lane) for lane in lanes]
    figure.update_layout(barmode="stack", bargap=0.25, shapes=[shapes[0]])
    figure.update_xaxes(
        title={"text": "virtual time since the round began"},
        ticksuffix=" s",
        rangemode="tozero",
        **_ticks(lanes[0]),
    )
    figure.update_yaxes(title={"text": "client"}, type="category", autorange="reversed")
    if len(lanes) > 1:
        dropdown(figure, [_choice(i, lanes) for i in range(len(lanes))])
    for lane in lanes:
        if lane.clients > len(lane.bars):
            note(figure, RULE)
    if limited:
        note(figure, limited)
    return figure


RULE = (
    f"Of rounds with more than {MAX_BARS} clients, {MAX_BARS} are shown, at equal steps from the "
    "fastest to the slowest, who are among them."
)
TRACES = len(PHASES)


def _lane(group: Group, number: int | None) -> Lane | None:
    run = group.runs[0]
    took, total = by_round(run, "time/virtual_s").finite(), cumulative(run, "time/virtual_s")
    table = ClientTable.of(run)
    if number is None:  # clients of a later round than the last one may be written already
        ended = int(took.rounds.max(initial=0))
        ((number,),) = table.query(LAST.format(round=ended))
    if number not in took.rounds:
        return None
    rows = table.query(ROWS.format(round=int(number)))
    if not rows:
        return None
    end = float(took.at(np.array([number]))[0])
    began = float(total.at(np.array([number]))[0]) - end
    places = np.linspace(0, len(rows) - 1, min(MAX_BARS, len(rows))).round().astype(int)
    bars = [_bar(rows[i], began) for i in places]
    return Lane(group, number, bars, end, len(rows))


def _labels(bars: Sequence[Bar]) -> list[str]:
    """Client numbers; who answered again within one update of the server is told apart."""
    seen: Counter[int] = Counter()
    labels = []
    for bar in bars:
        seen[bar.client] += 1
        again = seen[bar.client]
        labels.append(str(bar.client) if again == 1 else f"{bar.client}, answer {again}")
    return labels


def _bar(row: tuple, began: float) -> Bar:  # type: ignore[type-arg]
    client, status, device, took, end, *phases = row
    start = 0.0 if end is None else end - took - began
    known = sum(phases)
    status, device = (html.escape(word, quote=False) for word in (status, device or ""))
    return Bar(client, status, device, start, (*phases, max(0.0, took - known)))


def _traces(lane: Lane) -> list[go.Bar]:
    """A bar per phase, each stacked on the time before the client began."""
    return [
        go.Bar(
            x=[bar.phases[i] for bar in lane.bars],
            y=_labels(lane.bars),
            base=[bar.start + sum(bar.phases[:i]) for bar in lane.bars],
            orientation="h",
            name=phase,
            legendgroup=phase,
            marker={
                "color": colour,
                "pattern": {
                    "shape": ["" if bar.status == "ok" else "/" for bar in lane.bars],
                    "fillmode": "overlay",
                    "fgcolor": "#222",
                },
            },
            customdata=[[bar.status, bar.device] for bar in lane.bars],
            hovertemplate=f"client %{{y}} (%{{customdata[1]}}), %{{customdata[0]}}<br>{phase} "
            "%{x:.4g} s<extra></extra>",
        )
        for i, (phase, colour) in enumerate(PHASES.items())
    ]


def _end_line(lane: Lane) -> dict[str, object]:
    line = {"color": "#888", "dash": "dash", "width": 2}
    place = {"x0": lane.end, "x1": lane.end, "y0": 0, "y1": 1, "yref": "paper"}
    return {"type": "line", "line": line, **place}


def _ticks(lane: Lane) -> dict[str, Any]:
    return time_ticks([lane.end, *(bar.start + sum(bar.phases) for bar in lane.bars)])


def _choice(place: int, lanes: Sequence[Lane]) -> dict[str, Any]:
    visible = [i // TRACES == place for i in range(TRACES * len(lanes))]
    lane = lanes[place]
    layout = {"shapes": [_end_line(lane)], "xaxis.autorange": True, "yaxis.autorange": "reversed"}
    layout |= {f"xaxis.{key}": value for key, value in _ticks(lane).items()}
    label = f"{lane.group.short}, round {lane.number}"
    return {"label": label, "method": "update", "args": [{"visible": visible}, layout]}
