"""What a person sets: which runs, and the target or budget that a panel can be told."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import streamlit as st

from fedsim import differences
from fedsim.dashboards.options import Option
from fedsim.results import Run

FILTERS: dict[str, Callable[[Run], Iterable[str]]] = {
    "Name": lambda run: [run.name],
    "Tag": differences.tags,
    "Strategy": lambda run: [str(run.overview["strategy"])],
    "Codec": lambda run: [str(run.overview["codec"])],
    "Status": lambda run: [run.status],
}
"""Ways to pick runs, with the words that a run has under each."""
BUDGETS = {
    "megabytes": ("Budget of bytes (MB, up + down)", 1e6, ("comm/up_bytes", "comm/down_bytes")),
    "hours": ("Budget of time (h, virtual or wall)", 3600.0, ("time/virtual_s",)),
    "joules": ("Budget of energy (J)", 1.0, ("energy/joules",)),
}
"""Options of panels that are budgets: label, unit in units of the keys, keys of the totals."""


def runs(known: Sequence[Run]) -> list[Run]:
    """The runs picked in the sidebar: all those that fit every filter in use, less some by hand."""
    fitting = list(known)
    with st.sidebar:
        for label, words in FILTERS.items():
            options = sorted({word for run in known for word in words(run)})
            if len(options) > 1 or (label == "Tag" and options):
                wanted = set(
                    st.multiselect(label, options, placeholder="all", key=f"filter {label}")
                )
                fitting = [run for run in fitting if not wanted or wanted & set(words(run))]
        titles = _titles(fitting)
        left_out = st.multiselect("Leave out", list(titles), placeholder="none", key="left out")
        chosen = [run for title, run in titles.items() if title not in left_out]
        st.caption(f"{len(chosen)} of {len(known)} runs")
    return chosen


def settings(wanted: Mapping[str, Option], chosen: Sequence[Run]) -> dict[str, Any]:
    """Sliders for the options that some panel takes; an option left alone is not in the result."""
    values: dict[str, Any] = {}
    if "target" in wanted and (target := _target(chosen)) is not None:
        values["target"] = target
    for name, (label, unit, keys) in BUDGETS.items():
        if name in wanted and (budget := _budget(label, unit, keys, chosen)) is not None:
            values[name] = budget
    return values


def plain(text: str) -> str:
    """A text that Markdown shows as it is: names may hold anything.

    >>> plain("a*b <i>")
    'a\\\\*b \\\\<i\\\\>'
    """
    return re.sub(r"([\\`*_{}\[\]()<>#+\-.!|~:$&])", r"\\\1", text)


def _titles(some: Sequence[Run]) -> dict[str, Run]:
    grouped = differences.group(some)
    labels = {
        run.path: label
        for label, members in zip(differences.labels(grouped), grouped, strict=True)
        for run in members
    }
    return {f"{labels[run.path]}, seed {run.seed} ({run.path.name})": run for run in some}


def _target(chosen: Sequence[Run]) -> float | None:
    """A score between the worst and the best of the chosen runs."""
    key = chosen[0].key_metric[0]
    scores = [v for run in chosen for v in run.column(key)[1] if math.isfinite(v)]
    if not scores or min(scores) == max(scores):
        return None
    low, high = _rounded_down(min(scores)), max(scores)
    step = 10.0 ** math.floor(math.log10((high - low) / 50))
    first = low + round(0.9 * (high - low) / step) * step
    return st.slider(f"Target ({plain(key)})", low, high, first, step, format=f"%.{_digits(step)}f")


def _rounded_down(value: float) -> float:
    return math.floor(value * 100) / 100


def _digits(step: float) -> int:
    return max(0, -math.floor(math.log10(step)))


def _budget(label: str, unit: float, keys: Sequence[str], chosen: Sequence[Run]) -> float | None:
    totals = [sum(r.overview["totals"].get(key) or 0 for key in keys) / unit for r in chosen]
    spent = [total for total in totals if total > 0]
    if not spent:
        return None
    steps = one_two_five(min(spent) / 100, max(spent))
    nearest = min(steps, key=lambda step: abs(math.log(step / min(spent))))
    return st.select_slider(label, steps, nearest, format_func=lambda value: f"{value:g}")


def one_two_five(low: float, high: float) -> list[float]:
    """Round numbers from at most ``low`` to at least ``high``.

    >>> one_two_five(0.3, 4)
    [0.2, 0.5, 1.0, 2.0, 5.0]
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = [float(f"{digit}e{power}") for power in powers for digit in (1, 2, 5)]
    first = max((s for s in steps if s <= low), default=steps[0])
    last = min((s for s in steps if s >= high), default=steps[-1])
    return [step for step in steps if first <= step <= last]
