"""Panel: how old updates are when an asynchronous server receives them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import plotly.graph_objects as go

from fedsim.dashboards.curves import by_round
from fedsim.dashboards.drawing import groups
from fedsim.dashboards.multiples import Small, multiples
from fedsim.dashboards.panel import NothingToShow
from fedsim.results import Run

order = 38
title = "Staleness"
question = (
    "How many versions of the model had the server made since a client began, when its update "
    "arrived; and how many clients are at work at once?"
)
SMALLS = (
    Small("mean of the update", "versions behind", partial(by_round, key="agg/staleness")),
    Small("largest of the update", "versions behind", partial(by_round, key="agg/staleness_max")),
    Small("at work", "clients", partial(by_round, key="agg/in_flight"), whole=True),
)


def draw(runs: Sequence[Run]) -> go.Figure:
    """Draw mean and largest staleness, and clients at work, over updates of the server."""
    drawn = [g for g in groups(runs) if any(SMALLS[0].values(run).known for run in g.runs)]
    if not drawn:
        raise NothingToShow("No run has an asynchronous strategy (afa_cs, fedasync, fedbuff...).")
    return multiples(runs, drawn, [s for s in SMALLS if _known(s, runs)])


def _known(small: Small, runs: Sequence[Run]) -> bool:
    return any(small.values(run).known for run in runs)
