"""What panels share: groups of seeds with their colours, lines and bands, the look."""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from fedsim import differences
from fedsim.dashboards.curves import (
    AVERAGING,
    THINNING,
    Column,
    Curve,
    Floats,
    averaged,
    curve,
    most_points,
    thinning,
)
from fedsim.results import Run

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
"""Okabe and Ito's colour-blind safe palette, without the two that vanish on white or on black."""
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "triangle-down")
MAX_MARKERS = 12
"""Longer lines have markers at some of their points only."""
MAX_LABEL = 60
MAX_AXIS_LABEL = 36
MAX_GROUPS = 24
"""Groups whose single clients are shown."""
MAX_READ = 40
"""Runs whose lines of clients are read for one panel; reading them takes most of its time."""
GRID = "rgba(128,128,128,0.25)"


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed, and how all panels draw them."""

    label: str
    runs: Sequence[Run]
    colour: str
    dash: str
    symbol: str

    @property
    def name(self) -> str:
        """Label for legends: escaped, shortened, with the number of seeds when there are several.

        Figures read names as markup, so it is escaped here once.
        """
        return self.named(MAX_LABEL)

    @property
    def short(self) -> str:
        """The same for axes, where it takes the place of the figure."""
        return self.named(MAX_AXIS_LABEL)

    def named(self, most: int) -> str:
        """The same of at most so many characters, the number of seeds aside."""
        kept = self.label
        if len(kept) > most:  # names differ at their ends as often as at their beginnings
            kept = f"{kept[: most // 2]}…{kept[len(kept) - most // 2 + 1 :]}"
        seeds = f", {len(self.runs)} seeds" if len(self.runs) > 1 else ""
        return html.escape(kept, quote=False) + seeds


def groups(runs: Sequence[Run]) -> list[Group]:
    """The runs grouped over seeds, each group with its own colour, dash and symbol."""
    grouped = differences.group(runs)
    return [
        Group(
            label,
            members,
            COLOURS[i % len(COLOURS)],
            DASHES[i // len(COLOURS) % len(DASHES)],
            SYMBOLS[i % len(SYMBOLS)],
        )
        for i, (label, members) in enumerate(zip(differences.labels(grouped), grouped, strict=True))
    ]


def first_groups(drawn: Sequence[Group], most: int = MAX_GROUPS) -> tuple[list[Group], str]:
    """Groups whose single clients a panel shows, and a note about those that it leaves out.

    These are the first ones, up to ``most`` groups and ``MAX_READ`` runs, seeds counted.
    """
    runs = itertools.accumulate(len(group.runs) for group in drawn)
    fit = sum(total <= MAX_READ for total in runs)
    kept = list(drawn[: max(1, min(most, fit))])
    text = f"Only the first {len(kept)} of {len(drawn)} runs are shown here."
    return kept, text if len(kept) < len(drawn) else ""


def line(group: Group, points: Curve, hover: str, width: float = 2.0, **place: Any) -> go.Scatter:
    """The mean line of a group.

    Args:
        group: Whose line.
        points: What to draw.
        hover: Template for x and y, such as ``round %{x}: %{y:.4g}``.
        width: Of the line; see ``widths``.
        **place: Further properties of the trace.
    """
    return go.Scatter(
        x=points.x,
        y=points.mean,
        customdata=points.n,
        mode="lines+markers",
        name=group.name,
        legendgroup=group.label,
        line={"color": group.colour, "dash": group.dash, "width": width},
        marker={"symbol": group.symbol, "size": 7, "maxdisplayed": MAX_MARKERS},
        hovertemplate=on_hover(group, hover),
        **place,
    )


def on_hover(group: Group, hover: str) -> str:
    """What a point of a group's line says: its name, x and y, and the seeds behind it."""
    seeds = "<br>mean of %{customdata} seeds" if len(group.runs) > 1 else ""
    return f"<b>%{{fullData.name}}</b><br>{hover}{seeds}<extra></extra>"


def add_lines(
    figure: go.Figure,
    drawn: Sequence[Group],
    y: Callable[[Run], Column],
    hover: str,
    place: tuple[int, int],
    named: set[str],
    *,
    so_far: bool = False,
) -> None:
    """Draw a quantity over rounds into one subplot: a line per group, and a band over seeds.

    Args:
        figure: With subplots.
        drawn: Groups, in the order of the legend.
        y: The quantity of one run.
        hover: See ``line``.
        place: Row and column of the subplot.
        named: Labels that the legend has from earlier subplots; those with a line here are added.
        so_far: Whether it is a running total. Long lines of totals are thinned, others averaged.
    """
    row, column = place
    most = most_points(len(drawn))
    traces = []
    for rank, (group, width) in enumerate(zip(drawn, widths(len(drawn)), strict=True)):
        points = curve(group.runs, y)
        new = group.label not in named and bool(np.isfinite(points.mean).any())
        shorter = points.at(thinning(points.mean, most)) if so_far else averaged(points)
        shortened, points = len(shorter.x) < len(points.x), shorter
        if shortened:
            note(figure, THINNING.format(most=most) if so_far else AVERAGING)
        if has_band(group, drawn, ranges=shortened and not so_far):
            traces.append(band(group, points))
        legend = {"showlegend": new, "legendrank": 1000 + rank}  # in the order of the runs
        traces.append(line(group, points, hover, width, **legend))
        named |= {group.label} if new else set()
    figure.add_traces(traces, rows=row, cols=column)


MAX_BANDS = 12
"""More groups in one subplot have no bands, which would hide each other."""


def has_band(group: Group, drawn: Sequence[Group], ranges: bool = False) -> bool:
    """Whether a group among others is drawn with a band: over its seeds, or its points' ranges."""
    return (len(group.runs) > 1 or ranges) and len(drawn) <= MAX_BANDS


def note(figure: go.Figure, text: str) -> None:
    """Add a sentence to what the page says below the figure, once."""
    known = notes(figure)
    if text not in known:
        figure.layout.meta = {"notes": [*known, text]}


def notes(figure: go.Figure) -> list[str]:
    """Sentences about what the figure leaves out."""
    return list((figure.layout.meta or {}).get("notes", []))


def widths(number: int) -> list[float]:
    """Line widths for lines that may lie on each other: the first, which is below, is widest.

    >>> widths(3), widths(5)
    ([6.0, 4.0, 2.0], [2.0, 2.0, 2.0, 2.0, 2.0])
    """
    return [2.0 + 2.0 * (number - 1 - i if number <= 4 else 0) for i in range(number)]


def band(group: Group, points: Curve, **place: Any) -> go.Scatter:
    """The shaded range from the lowest to the highest seed."""
    x, y = outline(points)
    return go.Scatter(
        x=x,
        y=y,
        fill="toself",
        fillcolor=rgba(group.colour, 0.2),
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        showlegend=False,
        legendgroup=group.label,
        **place,
    )


def outline(points: Curve) -> tuple[Floats, Floats]:
    """The closed outline of a curve's range: along the top, back along the bottom."""
    kept = points.at(~np.isnan(points.low))
    there_and_back = np.concatenate([kept.x, kept.x[::-1]])
    return there_and_back, np.concatenate([kept.high, kept.low[::-1]])


def rgba(colour: str, alpha: float) -> str:
    """A hex colour with an opacity.

    >>> rgba("#0072B2", 0.2)
    'rgba(0,114,178,0.2)'
    """
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


_AXIS = {
    "showgrid": True,
    "gridcolor": GRID,
    "showline": True,
    "linecolor": GRID,
    "zeroline": True,
    "zerolinecolor": GRID,
    "automargin": True,
    "title": {"standoff": 8},
}
TEMPLATE = go.layout.Template(
    layout={
        "margin": {"l": 70, "r": 20, "t": 36, "b": 60},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": "#777"},
        "hoverlabel": {"bgcolor": "#fff", "font": {"color": "#222"}, "bordercolor": "#888"},
        "legend": {"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"},
        "modebar": {"bgcolor": "rgba(0,0,0,0)"},
        "showlegend": True,
        "xaxis": _AXIS,
        "yaxis": _AXIS,
    }
)
"""The look that all panels share; colours of text are set by the page for light and dark."""


def styled(figure: go.Figure, height: int) -> go.Figure:
    """Give a figure the common look.

    Args:
        figure: With all its traces.
        height: In pixels, with one line of legend; further lines are added to it.
    """
    figure.layout.template = TEMPLATE
    figure.layout.height = height + LEGEND_LINE * (_legend_lines(figure) - 1)
    return figure


LEGEND_LINE = 22
"""Height of a line of legend in pixels."""


def _legend_lines(figure: go.Figure) -> int:
    """About how many lines the legend takes on a laptop: it sets entries in equal columns."""
    names = [html.unescape(t.name) for t in figure.data if t.name and t.showlegend is not False]
    widest = 48 + 7 * max(map(len, names), default=0)
    return max(1, math.ceil(len(names) / max(1, 1100 // widest)))


def rounded(values: Any) -> Any:
    """Numbers for a button or slider, to seven digits: they are in the page once per choice.

    >>> rounded(np.array([1 / 3, 12345678.0, 0.0])).tolist()
    [0.3333333, 12345680.0, 0.0]
    """
    if values is None:
        return None
    numbers = np.asarray(values, float)
    sizes = np.abs(np.where(np.isfinite(numbers) & (numbers != 0), numbers, 1.0))
    shift = 6 - np.floor(np.log10(sizes)).astype(int)
    up, down = 10.0 ** np.maximum(shift, 0), 10.0 ** np.maximum(-shift, 0)
    return np.round(numbers * up / down) * down / up


def buttons(figure: go.Figure, choices: Sequence[Mapping[str, Any]], active: int = 0) -> None:
    """Put a row of buttons above the figure."""
    _menu(figure, choices, type="buttons", direction="right", active=active)


def dropdown(figure: go.Figure, choices: Sequence[Mapping[str, Any]]) -> None:
    """Put a menu above the figure, for more choices than buttons have room for."""
    _menu(figure, choices, type="dropdown", direction="down", showactive=True)


def _menu(figure: go.Figure, choices: Sequence[Mapping[str, Any]], **kind: Any) -> None:
    place = {"x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom", "pad": {"b": 12}}
    look = {"bgcolor": "#d4d4d4", "bordercolor": "#999", "font": {"color": "#222", "size": 12}}
    menu = {**kind, **place, **look, "buttons": list(choices)}
    figure.update_layout(updatemenus=[menu], margin_t=64)


def slider(figure: go.Figure, name: str, steps: Sequence[Mapping[str, Any]], active: int) -> None:
    """Put a slider below the figure, which grows by its height."""
    height = figure.layout.height + SLIDER_HEIGHT
    below = {"x": 0, "len": 1, "y": 0, "yanchor": "top", "pad": {"t": 52, "b": 8}}
    look = {"font": {"color": "#888", "size": 12}, "bordercolor": "#999", "bgcolor": "#d4d4d4"}
    value = {"prefix": name, "font": {"size": 13, "color": "#888"}, "xanchor": "left"}
    bar = {**below, **look, "active": active, "currentvalue": value, "steps": list(steps)}
    figure.update_layout(height=height, sliders=[bar], margin_b=SLIDER_HEIGHT + 60)


SLIDER_HEIGHT = 80
