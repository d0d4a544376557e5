"""The contract of a panel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import plotly.graph_objects as go

from fedsim.results import Run


class NothingToShow(Exception):
    """A panel has no data to draw; the message says what is missing."""


class Panel(Protocol):
    """A module with these attributes is a panel.

    ``draw`` may have further keyword-only arguments with defaults, annotated with ``int``,
    ``float`` or ``str`` (or None): what a reader may choose, such as ``target`` of
    ``dashboards/target.py``. The report page draws the defaults, with buttons or a slider inside
    the figure; whoever draws live may pass values. Sentences about what a figure leaves out
    (thinned lines, runs that are not shown) are added by ``drawing.note`` and printed below it.
    """

    order: int
    """Place on the page, lowest first."""
    title: str
    question: str
    """What the figure answers, in one sentence."""

    def draw(self, runs: Sequence[Run]) -> go.Figure:
        """Draw all runs in one figure.

        Raises:
            NothingToShow: No run has what this panel shows.
        """
