"""Panel: who took part when."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from fedsim.client_table import ClientTable
from fedsim.dashboards.curves import Floats
from fedsim.dashboards.drawing import Group, first_groups, groups, note, styled
from fedsim.dashboards.panel import NothingToShow
from fedsim.results import Run

order = 34
title = "Participation"
question = (
    "Which clients were chosen in which rounds? Of each run, its first seed; a client counts in "
    "the round in which it was asked, or for asynchronous runs in which it answered."
)
MAX_SHOWN = 6
MAX_CELLS = (80, 60)
"""Rounds and clients of one map; longer ones are put together."""


def draw(runs: Sequence[Run]) -> go.Figure:
    """Draw a map of clients and rounds for each of the first runs."""
    drawn, limited = first_groups(groups(runs), MAX_SHOWN)
    maps = [(g, found) for g in drawn if (found := _map(g.runs[0])) is not None]
    if not maps:
        raise NothingToShow("No run has written which clients took part.")
    columns = min(len(maps), 3)
    rows = math.ceil(len(maps) / columns)
    figure = make_subplots(
        rows,
        columns,
        subplot_titles=[g.named(26) for g, _ in maps],
        vertical_spacing=0.32 / rows,
        horizontal_spacing=0.08,
    )
    for i, (group, found) in enumerate(maps):
        row, column = divmod(i, columns)
        figure.add_trace(_heat(group, found), row=row + 1, col=column + 1)
    styled(figure, height=110 + 310 * rows)
    bar = {"title": {"text": "share of<br>rounds"}, "tickformat": ".0%"}
    top = max(float(found.shares.max()) for _, found in maps)
    scale = {"colorscale": "Cividis", "cmin": 0, "cmax": top, "colorbar": bar}
    figure.update_layout(coloraxis=scale)
    figure.update_xaxes(title={"text": "round"}, showgrid=False)
    figure.update_yaxes(title={"text": "client"}, showgrid=False)
    cells = [f"{found.cell} ({group.label})" for group, found in maps if found.cell]
    if cells:
        note(figure, f"A cell stands for {'; '.join(cells)}. Its colour is the share of them.")
    if limited:
        note(figure, limited)
    return figure


@dataclass(frozen=True)
class Map:
    """How often clients took part.

    Attributes:
        shares: Of the rounds and clients of each cell, the part in which a client took part.
        rounds: First round of each column; ``clients`` is the first client of each row.
        cell: What a cell stands for, in words, where it is more than one client and round.
    """

    shares: Floats  # (clients, rounds)
    rounds: list[int]
    clients: list[int]
    cell: str


def _map(run: Run) -> Map | None:
    table = ClientTable.of(run)
    ((last_round, last_client),) = table.query("SELECT max(round), max(client) FROM clients")
    if last_round is None:
        return None
    known = run.scenario.get("num_clients")
    clients = max(last_client + 1, known if isinstance(known, int) else 0)
    wide, high = math.ceil(last_round / MAX_CELLS[0]), math.ceil(clients / MAX_CELLS[1])
    counted = table.query(
        f"SELECT client // {high}, (round - 1) // {wide}, count(*) FROM (SELECT DISTINCT client, "
        "round FROM clients WHERE round > 0 AND client >= 0 AND coalesce(stage, 'train') = 'train')"
        " GROUP BY 1, 2"
    )
    shape = (math.ceil(clients / high), math.ceil(last_round / wide))
    counts = np.zeros(shape)
    for row, column, number in counted:
        counts[row, column] = number
    heights = np.minimum(high, clients - high * np.arange(shape[0]))
    widths = np.minimum(wide, last_round - wide * np.arange(shape[1]))
    together = f"{_several(high, 'client')} in {_several(wide, 'round')}"
    cell = "" if wide == high == 1 else together
    starts = (1 + wide * np.arange(shape[1])).tolist(), (high * np.arange(shape[0])).tolist()
    return Map(counts / np.outer(heights, widths), *starts, cell)


def _several(number: int, word: str) -> str:
    return f"1 {word}" if number == 1 else f"{number:,} neighbouring {word}s"


def _heat(group: Group, found: Map) -> go.Heatmap:
    return go.Heatmap(
        z=np.round(found.shares, 5),
        x=found.rounds,
        y=found.clients,
        name=group.name,
        coloraxis="coloraxis",
        hovertemplate="round %{x}, client %{y}: %{z:.3~%}<extra></extra>",
    )
