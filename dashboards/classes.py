"""Panel: how each class of devices fared."""

from __future__ import annotations

import html
from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from fedsim.client_table import ClientTable
from fedsim.dashboards.costs import comparable
from fedsim.dashboards.curves import by_round
from fedsim.dashboards.drawing import COLOURS, Group, first_groups, groups, note, styled
from fedsim.dashboards.panel import NothingToShow
from fedsim.results import Run

order = 27
title = "Device classes"
question = (
    "What became of the clients of each class of devices, and which score do they get? Shares of "
    "the times that a class was chosen, over all rounds and seeds; scores of the last test."
)
OUTCOMES = ("ok", "late", "dropped", "interrupted", "oom", "void", "failed")
WORDS = {"ok": "completed", "oom": "out of memory", "void": "too few others"}
PATTERNS = ("", "/", "x", "\\", ".", "-", "+")
MAX_BARS = 60
COUNTS = (
    "SELECT device, coalesce(status, 'ok'), count(*) FROM clients "
    "WHERE device IS NOT NULL AND coalesce(stage, 'train') = 'train' GROUP BY 1, 2 ORDER BY 1, 2"
)
SCORES = (
    "WITH classes AS (SELECT DISTINCT client, device FROM clients WHERE device IS NOT NULL), "
    "tests AS (SELECT client, score FROM clients WHERE stage = 'evaluate' AND isfinite(score) "
    "AND round = (SELECT max(round) FROM clients WHERE stage = 'evaluate')) "
    "SELECT classes.device, list(score ORDER BY score) FROM tests JOIN classes USING (client) "
    "GROUP BY 1 ORDER BY 1"
)
"""A client's class is known from its training; a test on its own rows names the client only."""


def draw(runs: Sequence[Run]) -> go.Figure:
    """Draw stacked shares of outcomes per run and class, and mean scores beside them."""
    drawn, limited = first_groups([g for g in groups(runs) if _on_devices(g)], 12)
    ClientTable.each(run for g in drawn for run in g.runs)  # read together, kept with the runs
    counts = {g.label: _counts(g) for g in drawn}
    timed = [g for g in drawn if counts[g.label]]
    if not timed:
        raise NothingToShow("No run has clients on devices; see the scenario key `devices`.")
    scores = {g.label: _scores(g) for g in comparable(timed)[0]}
    figure = _figure(timed, counts, scores)
    if not any(scores.values()):
        note(figure, "Scores need clients' own test rows (evaluate.personal).")
    if limited:
        note(figure, limited)
    return figure


def _on_devices(group: Group) -> bool:
    """Whether any of the runs has virtual time, which costs less to see than clients' lines."""
    return any(by_round(run, "time/virtual_s").known for run in group.runs)


def _counts(group: Group) -> dict[str, dict[str, int]]:
    """How often each class met each outcome, over all seeds."""
    result: dict[str, dict[str, int]] = {}
    for table in ClientTable.each(group.runs):
        for device, status, number in table.query(COUNTS):
            outcomes = result.setdefault(device, {})
            outcomes[status] = outcomes.get(status, 0) + number
    return result


def _scores(group: Group) -> dict[str, float]:
    """Mean score of each class, over clients and seeds."""
    found: dict[str, list[float]] = {}
    for table in ClientTable.each(group.runs):
        for device, values in table.query(SCORES):
            found.setdefault(device, []).extend(values)
    return {device: sum(values) / len(values) for device, values in found.items()}


def _figure(
    timed: Sequence[Group],
    counts: dict[str, dict[str, dict[str, int]]],
    scores: dict[str, dict[str, float]],
) -> go.Figure:
    bars = [(g, device) for g in timed for device in sorted(counts[g.label])][:MAX_BARS]
    places = [[g.short for g, _ in bars], [html.escape(d, quote=False) for _, d in bars]]
    known = {status for of_group in counts.values() for c in of_group.values() for status in c}
    with_scores = any(scores.values())
    figure = make_subplots(
        1,
        2 if with_scores else 1,
        shared_yaxes=True,
        column_widths=[0.75, 0.25] if with_scores else [1.0],
        subplot_titles=["what became of them", "mean score"][: 1 + with_scores],
        horizontal_spacing=0.03,
    )
    for outcome in [*OUTCOMES, *sorted(known - {*OUTCOMES})]:
        if outcome in known:
            numbers = [counts[g.label][d].get(outcome, 0) for g, d in bars]
            totals = [sum(counts[g.label][d].values()) for g, d in bars]
            trace = _bar(places, outcome, numbers, totals)
            figure.add_trace(trace, row=1, col=1)
    if with_scores:
        means = [scores.get(g.label, {}).get(d) for g, d in bars]
        figure.add_trace(_dots(places, means, [g.colour for g, _ in bars]), row=1, col=2)
        figure.update_xaxes(title={"text": "mean over clients"}, row=1, col=2)
    styled(figure, height=210 + 24 * len(bars))
    figure.update_layout(barmode="stack", legend_traceorder="normal")
    figure.update_xaxes(title={"text": "share of the times chosen"}, tickformat=".0%", col=1)
    figure.update_yaxes(autorange="reversed")
    figure.update_yaxes(title={"text": "run, class"}, row=1, col=1)
    return figure


def _bar(
    places: list[list[str]], outcome: str, numbers: Sequence[int], totals: Sequence[int]
) -> go.Bar:
    place = OUTCOMES.index(outcome) if outcome in OUTCOMES else len(OUTCOMES) - 1
    word = html.escape(WORDS.get(outcome, outcome), quote=False)
    colour = COLOURS[place % len(COLOURS)]
    return go.Bar(
        x=[n / total for n, total in zip(numbers, totals, strict=True)],
        y=places,
        orientation="h",
        name=word,
        marker={
            "color": colour,
            "pattern": {"shape": PATTERNS[place], "fillmode": "overlay", "fgcolor": "#222"},
        },
        customdata=list(zip(numbers, totals, strict=True)),
        hovertemplate=f"{word}: %{{customdata[0]:,}} of %{{customdata[1]:,}}<extra></extra>",
    )


def _dots(
    places: list[list[str]], means: Sequence[float | None], colours: Sequence[str]
) -> go.Scatter:
    return go.Scatter(
        x=means,
        y=places,
        mode="markers",
        name="mean score",
        showlegend=False,
        marker={"color": list(colours), "size": 9},
        hovertemplate="%{x:.6g}<extra></extra>",
    )
