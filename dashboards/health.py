"""Panel: whether the simulation itself went well."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import plotly.graph_objects as go

from fedsim.dashboards.curves import Column, by_round
from fedsim.dashboards.drawing import groups
from fedsim.dashboards.multiples import Small, multiples
from fedsim.dashboards.panel import NothingToShow
from fedsim.results import Run

order = 60
title = "Health"
question = (
    "Did the simulation go well: clients that finished, failed or were tried again on another "
    "worker, its memory, and its speed?"
)


def draw(runs: Sequence[Run]) -> go.Figure:
    """Draw clients, memory and speed over rounds."""
    drawn = [
        g for g in groups(runs) if any(_trained(run, "clients/completed").known for run in g.runs)
    ]
    if not drawn:
        raise NothingToShow("No run has finished a round with clients yet.")
    smalls = [s for s in SMALLS if any(s.values(run).known for g in drawn for run in g.runs)]
    return multiples(runs, drawn, smalls)


def _trained(run: Run, key: str) -> Column:
    """A column from round 1: there are no clients in round 0."""
    return by_round(run, key).since(1)


def _speed(run: Run) -> Column:
    """Clients that finished, per second of the round with its test."""
    completed = _trained(run, "clients/completed")
    seconds = by_round(run, "time/wall_s").at(completed.rounds)
    timed = seconds > 0
    return Column(completed.rounds[timed], completed.values[timed] / seconds[timed])


SMALLS = (
    Small("completed", "clients a round", partial(_trained, key="clients/completed"), whole=True),
    Small("failed", "clients a round", partial(_trained, key="clients/failed"), whole=True),
    Small("tried again", "clients a round", partial(_trained, key="clients/retried"), whole=True),
    Small(
        "peak memory of the largest process",
        "bytes",
        partial(_trained, key="mem/peak_bytes"),
        unit="B",
    ),
    Small("speed (wall time)", "clients a second", _speed),
)
