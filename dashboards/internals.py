"""Panel: what methods report of themselves."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import plotly.graph_objects as go

from fedsim.dashboards.curves import by_round
from fedsim.dashboards.drawing import groups, note
from fedsim.dashboards.multiples import Small, multiples
from fedsim.dashboards.panel import NothingToShow
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


def draw(runs: Sequence[Run]) -> go.Figure:
    """Draw every further number of rounds.jsonl, one subplot each."""
    keys = [k for k in own_keys(runs) if any(by_round(run, k).known for run in runs)]
    if not keys:
        raise NothingToShow("No run has written numbers of its method.")
    shown = keys[:MAX_KEYS]
    drawn = [g for g in groups(runs) if any(by_round(r, k).known for r in g.runs for k in shown)]
    smalls = [Small(key, _axis(key), partial(by_round, key=key)) for key in shown]
    figure = multiples(runs, drawn, smalls)
    if len(keys) > len(shown):
        note(figure, f"Not shown, of {len(keys)} numbers: {', '.join(keys[MAX_KEYS:])}.")
    return figure


def own_keys(runs: Sequence[Run]) -> list[str]:
    """Keys of rounds.jsonl that belong to no other panel, those of privacy first, by name."""
    keys = {key for run in runs for record in run.rounds for key in record}
    own = {k for k in keys if k.split("/")[0] not in ELSEWHERE and k not in SHOWN}
    return sorted(own, key=lambda key: (not key.startswith("privacy/"), key))


def _axis(key: str) -> str:
    """The last part of a key, which carries its unit."""
    return key.rsplit("/", 1)[-1].replace("_", " ")
