"""Panel: what methods report of themselves."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import plotly.graph_objects as go

from fedsim.dashboards.curves import Column, by_round
from fedsim.dashboards.drawing import groups, note
from fedsim.dashboards.multiples import Small, multiples
from fedsim.dashboards.panel import NothingToShow
from fedsim.dashboards.quantities import place, quantity
from fedsim.results import Run

order = 50
title = "Inside the methods"
question = (
    "What do strategies, codecs, clients and privacy accountants report of themselves: norms, "
    "residuals, steps, clusters, seeds, epsilon?"
)
ELSEWHERE = ("round", "eval", "comm", "time", "energy", "mem", "clients", "work")
"""Groups of keys that other panels show."""
SHOWN = ("train/loss", "agg/staleness", "agg/staleness_max", "agg/in_flight")
MAX_KEYS = 24
LISTS = "Of lists, the last one of each run is drawn, entry by entry."


def draw(runs: Sequence[Run]) -> go.Figure:
    """Draw every further number of rounds.jsonl, one subplot each."""
    smalls = {key: _small(key, runs) for key in own_keys(runs)}
    smalls = {k: s for k, s in smalls.items() if any(s.values(run).known for run in runs)}
    if not smalls:
        raise NothingToShow("No run has written numbers of its method.")
    shown = list(smalls.values())[:MAX_KEYS]
    drawn = [g for g in groups(runs) if any(s.values(r).known for r in g.runs for s in shown)]
    figure = multiples(runs, drawn, shown)
    if any(small.x != "round" for small in shown):
        note(figure, LISTS)
    if len(smalls) > len(shown):
        left_out = ", ".join(list(smalls)[MAX_KEYS:])
        note(figure, f"Not shown, of {len(smalls)} numbers: {left_out}.")
    return figure


def own_keys(runs: Sequence[Run]) -> list[str]:
    """Keys of rounds.jsonl that belong to no other panel, those of privacy first."""
    keys = {key for run in runs for key in run.columns}
    own = {k for k in keys if k.split("/")[0] not in ELSEWHERE and k not in SHOWN}
    return sorted(own, key=place)


def last_list(run: Run, key: str) -> Column:
    """The entries of the last list that a run has under a key, numbered from 1."""
    found = _lists(run, key)
    entries = (
        [v if isinstance(v, int | float) else float("nan") for v in found[-1]] if found else []
    )
    return Column.of(range(1, len(entries) + 1), entries)


def _lists(run: Run, key: str) -> list[list[object]]:
    _, values = run.columns.get(key, ([], []))
    return [value for value in values if isinstance(value, list)]


def _small(key: str, runs: Sequence[Run]) -> Small:
    shown = quantity(key)
    if any(_lists(run, key) for run in runs):
        values = partial(last_list, key=key)
        return Small(shown.title, shown.axis, values, x=shown.entry)
    return Small(shown.title, shown.axis, partial(by_round, key=key), spans=True)
