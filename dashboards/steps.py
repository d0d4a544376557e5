"""Panel: clients' local steps, where a run has logged them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import plotly.graph_objects as go

from fedsim.dashboards.curves import Column, Floats, Ints
from fedsim.dashboards.drawing import groups, note
from fedsim.dashboards.multiples import Small, multiples
from fedsim.dashboards.panel import NothingToShow
from fedsim.records import Record
from fedsim.results import Run

order = 52
title = "Local steps"
question = (
    "How does the loss go down within a round; and of zeroth-order clients, how are the slopes "
    "along their directions spread, and how many steps do they drop?"
)
SLOPE = "loss per unit of length"
LAST = "Losses within a round are means over the clients of the last tenth of the logged rounds."
_KEPT = "_step_table"
MOST = 2**31
"""No run has as many rounds or steps; other numbers are damage."""


@dataclass(frozen=True, eq=False)
class StepTable:
    """The lines of steps.jsonl, in order; NaN where a line has no number.

    Attributes:
        rounds: Round of each line.
        steps: Number of the local step in its round, from 1.
        losses: Loss of the step's batch; of a probe, the mean of its two.
        slopes: Absolute scalar of a zeroth-order step.
        dropped: 1 where such a step was dropped, 0 where it was not.
    """

    rounds: Ints
    steps: Ints
    losses: Floats
    slopes: Floats
    dropped: Floats

    @classmethod
    def of(cls, run: Run) -> StepTable:
        """The table of a run as it was when first asked for; kept with the run."""
        if _KEPT not in run.__dict__:
            lines = [_line(step) for step in run.steps if _has_place(step)]
            columns = np.array(lines, np.float64).reshape(-1, 5).T
            whole = columns[:2].astype(np.int64)
            run.__dict__[_KEPT] = cls(whole[0], whole[1], *columns[2:])
        table: StepTable = run.__dict__[_KEPT]
        return table


def draw(runs: Sequence[Run]) -> go.Figure:
    """Draw losses over the steps of a round, and quantiles of slopes over rounds."""
    shown = [small for small in SMALLS if any(small.values(run).known for run in runs)]
    if not shown:
        raise NothingToShow("No run has logged its local steps (log_steps: true).")
    drawn = [g for g in groups(runs) if any(s.values(r).known for r in g.runs for s in shown)]
    figure = multiples(runs, drawn, shown)
    if shown[0] is SMALLS[0]:
        note(figure, LAST)
    return figure


def losses_within_a_round(run: Run) -> Column:
    """Mean loss of each local step, over the clients of the last tenth of the rounds."""
    table = StepTable.of(run)
    last = table.rounds > 0.9 * table.rounds.max(initial=0)
    return _by(table.steps[last], table.losses[last], np.mean)


def by_round(run: Run, values: str, summary: Callable[[Floats], Any]) -> Column:
    """A summary of one column of the table for every round that has numbers in it."""
    table = StepTable.of(run)
    return _by(table.rounds, getattr(table, values), summary)


SMALLS = (
    Small("Loss within a round", "loss", losses_within_a_round, x="local step", spans=True),
    *(
        Small(name, SLOPE, partial(by_round, values="slopes", summary=summary), spans=True)
        for name, summary in (
            ("Slopes: median size", np.median),
            ("Slopes: 95 % are smaller", partial(np.quantile, q=0.95)),
            ("Slopes: largest", np.max),
        )
    ),
    Small("Dropped steps", "share", partial(by_round, values="dropped", summary=np.mean)),
)


def _by(places: Ints, values: Floats, summary: Callable[[Floats], Any]) -> Column:
    known = np.isfinite(values)
    ascending = np.argsort(places[known], kind="stable")
    found, starts = np.unique(places[known][ascending], return_index=True)
    parts = np.split(values[known][ascending], starts[1:]) if len(found) else []
    return Column.of(found, [summary(part) for part in parts])


def _has_place(step: Record) -> bool:
    places = [step.get("round"), step.get("step")]
    return all(isinstance(place, int) and 0 < place < MOST for place in places)


def _line(step: Record) -> tuple[float, ...]:
    slope = abs(_number(step, "scalar"))
    dropped = float(step["scalar"] is None) if "scalar" in step else np.nan
    probe = (_number(step, "loss_plus") + _number(step, "loss_minus")) / 2
    loss = _number(step, "loss") if "loss" in step else probe
    return step["round"], step["step"], loss, slope, dropped


def _number(step: Record, key: str) -> float:
    value = step.get(key)
    return float(value) if isinstance(value, int | float) else np.nan
