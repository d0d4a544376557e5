"""What panels share: groups of seeds with their colours, curves over seeds, the look."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import plotly.graph_objects as go

from fedsim import differences
from fedsim.results import Run
from fedsim.units import human_bytes

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
"""Okabe and Ito's colour-blind safe palette, without the two that vanish on white or on black."""
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "triangle-down")
MAX_MARKERS = 12
"""Longer lines have markers at some of their points only."""
MAX_LABEL = 60
GRID = "rgba(128,128,128,0.25)"
UNITS = {
    "accuracy": "share of correct answers",
    "token_accuracy": "share of correct tokens",
    "loss": "mean per example",
    "perplexity": "1 = certain",
    "rougeL": "0 to 1",
}
"""Units of metrics, by the last part of their key."""


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
        short = self.label if len(self.label) <= MAX_LABEL else self.label[: MAX_LABEL - 1] + "…"
        seeds = f", {len(self.runs)} seeds" if len(self.runs) > 1 else ""
        return html.escape(short, quote=False) + seeds


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


@dataclass(frozen=True)
class Curve:
    """Means over seeds, point by point; ``n`` is the number of seeds behind each point."""

    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]
    n: list[int]


Values = Mapping[int, float]
"""A quantity of one run by round."""


def by_round(run: Run, key: str) -> Values:
    """A column of the run; NaN where the run wrote null."""
    return dict(zip(*run.column(key), strict=True))


def cumulative(run: Run, *keys: str) -> Values:
    """Running total of the sum of some columns, over all rounds of the run."""
    total, result = 0.0, {}
    for record in run.rounds:
        total += sum(record.get(key) or 0.0 for key in keys)
        result[record["round"]] = total
    return result


def curve(
    runs: Sequence[Run],
    y: Callable[[Run], Values],
    x: Callable[[Run], Values] | None = None,
) -> Curve:
    """Mean and range of ``y`` over runs, at the mean ``x`` of each round (the round by default).

    A point is the mean of those runs that have this round; a NaN in one of them makes a gap.
    """
    ys = [y(run) for run in runs]
    xs = [
        x(run) if x else {n: float(n) for n in values} for run, values in zip(runs, ys, strict=True)
    ]
    points = []
    for n in sorted({n for values in ys for n in values}):
        here = [(a[n], b[n]) for a, b in zip(xs, ys, strict=True) if n in b]
        heights = [b for _, b in here]
        gap = any(math.isnan(b) for b in heights)
        low, high = (math.nan, math.nan) if gap else (min(heights), max(heights))
        points.append((fmean(a for a, _ in here), fmean(heights), low, high, len(here)))
    return Curve(*(list(column) for column in zip(*points, strict=True))) if points else _EMPTY


_EMPTY = Curve([], [], [], [], [])


def line(group: Group, points: Curve, hover: str, width: float = 2.0, **place: Any) -> go.Scatter:
    """The mean line of a group.

    Args:
        group: Whose line.
        points: What to draw.
        hover: Template for x and y, such as ``round %{x}: %{y:.4g}``.
        width: Of the line; see ``widths``.
        **place: Further properties of the trace.
    """
    seeds = "<br>mean of %{customdata} seeds" if len(group.runs) > 1 else ""
    return go.Scatter(
        x=points.x,
        y=points.mean,
        customdata=points.n,
        mode="lines+markers",
        name=group.name,
        legendgroup=group.label,
        line={"color": group.colour, "dash": group.dash, "width": width},
        marker={"symbol": group.symbol, "size": 7, "maxdisplayed": MAX_MARKERS},
        hovertemplate=f"<b>%{{fullData.name}}</b><br>{hover}{seeds}<extra></extra>",
        **place,
    )


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


def outline(points: Curve) -> tuple[list[float], list[float]]:
    """The closed outline of a curve's range: along the top, back along the bottom."""
    kept = [p for p in zip(points.x, points.low, points.high, strict=True) if not math.isnan(p[1])]
    x = [p[0] for p in kept]
    return x + x[::-1], [p[2] for p in kept] + [p[1] for p in reversed(kept)]


def rgba(colour: str, alpha: float) -> str:
    """A hex colour with an opacity.

    >>> rgba("#0072B2", 0.2)
    'rgba(0,114,178,0.2)'
    """
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def metric_label(key: str) -> str:
    """Axis title of a metric, with its unit where it is known.

    >>> metric_label("eval/accuracy")
    'eval/accuracy (share of correct answers)'
    """
    unit = UNITS.get(key.rsplit("/", 1)[-1])
    return html.escape(f"{key} ({unit})" if unit else key, quote=False)


def styled(figure: go.Figure, height: int) -> go.Figure:
    """The look that all panels share; colours of text are set by the page for light and dark.

    Args:
        figure: With all its traces.
        height: In pixels, with one line of legend; further lines are added to it.
    """
    figure.update_layout(
        template="none",
        height=height + LEGEND_LINE * (_legend_lines(figure) - 1),
        margin={"l": 70, "r": 20, "t": 60, "b": 60},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13, "color": "#777"},
        hoverlabel={"bgcolor": "#fff", "font": {"color": "#222"}, "bordercolor": "#888"},
        legend={"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"},
        modebar={"bgcolor": "rgba(0,0,0,0)"},
        showlegend=True,
    )
    axis = {"gridcolor": GRID, "linecolor": GRID, "zerolinecolor": GRID, "automargin": True}
    figure.update_xaxes(**axis, title_standoff=8)
    figure.update_yaxes(**axis, title_standoff=8)
    return figure


LEGEND_LINE = 22
"""Height of a line of legend in pixels."""


def _legend_lines(figure: go.Figure) -> int:
    """About how many lines the legend takes on a laptop: it sets entries in equal columns."""
    names = [html.unescape(t.name) for t in figure.data if t.name and t.showlegend is not False]
    widest = 48 + 7 * max(map(len, names), default=0)
    return max(1, math.ceil(len(names) / max(1, 1100 // widest)))


def round_ticks(runs: Sequence[Run]) -> int | None:
    """Distance of ticks on a round axis: whole rounds where plotly would draw fractions."""
    return 1 if max((r["round"] for run in runs for r in run.rounds), default=0) <= 10 else None


def log_bytes(values: Sequence[float]) -> dict[str, Any]:
    """Ticks of a logarithmic byte axis: 1, 2 and 5 of each decade, only 1 over long ranges."""
    positive = [v for v in values if v > 0]
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    digits = (1, 2, 5) if high - low <= 3 else (1,)
    ticks = [digit * 10**power for power in range(low, high + 1) for digit in digits]
    return {"tickmode": "array", "tickvals": ticks, "ticktext": [human_bytes(t) for t in ticks]}


def buttons(choices: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row of buttons above the figure, for ``layout.updatemenus``."""
    return [
        {
            "type": "buttons",
            "direction": "right",
            "x": 0,
            "xanchor": "left",
            "y": 1,
            "yanchor": "bottom",
            "pad": {"b": 12},
            "bgcolor": "#d4d4d4",
            "bordercolor": "#999",
            "font": {"color": "#222", "size": 12},
            "buttons": list(choices),
        }
    ]
