"""Axes that panels share: titles with units, ticks of rounds, bytes and times."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from fedsim.dashboards.curves import Column, Floats, by_round
from fedsim.results import Run
from fedsim.units import human_bytes

UNITS = {
    "accuracy": "share of correct answers",
    "token_accuracy": "share of correct tokens",
    "loss": "mean per example",
    "perplexity": "1 = certain",
    "rougeL": "0 to 1",
}
"""Units of metrics, by the last part of their key."""


def metric_label(key: str) -> str:
    """Axis title of a metric, with its unit where it is known.

    >>> metric_label("eval/accuracy")
    'eval/accuracy (share of correct answers)'
    """
    unit = UNITS.get(key.rsplit("/", 1)[-1])
    return html.escape(f"{key} ({unit})" if unit else key, quote=False)


def round_ticks(runs: Sequence[Run]) -> int | None:
    """Distance of ticks on a round axis."""
    return whole_ticks(by_round(run, "round") for run in runs)


def whole_ticks(columns: Iterable[Column]) -> int | None:
    """Distance of ticks on an axis of whole numbers: 1 where plotly would draw fractions."""
    last = max((column.rounds.max(initial=0) for column in columns), default=0)
    return 1 if last <= 10 else None


def log_bytes(values: Sequence[float] | Floats) -> dict[str, Any]:
    """Ticks of a logarithmic byte axis: 1, 2 and 5 of each decade, only 1 over long ranges."""
    numbers = np.asarray(values, float)
    positive = numbers[numbers > 0]
    low, high = math.floor(math.log10(positive.min())), math.ceil(math.log10(positive.max()))
    digits = (1, 2, 5) if high - low <= 3 else (1,)
    ticks = [digit * 10**power for power in range(low, high + 1) for digit in digits]
    return {"tickmode": "array", "tickvals": ticks, "ticktext": [human_bytes(t) for t in ticks]}


TIME_STEPS = (10, 20, 30, 60, 120, 300, 600, 1200, 1800, *(h * 3600 for h in (1, 2, 4, 6, 12, 24)))
"""Distances of ticks on a linear axis of seconds."""
TIMES = (1, 10, 60, 600, 3600, 36_000, 86_400, 864_000, 8_640_000)
"""Ticks of a logarithmic one."""


def time_ticks(
    values: Sequence[float] | Floats, *, most: int = 6, log: bool = False
) -> dict[str, Any]:
    """Ticks of an axis of seconds in minutes, hours and days; plotly's for less than two minutes.

    >>> time_ticks([0.0, 7000.0])["ticktext"]
    ['0', '20 min', '40 min', '1 h', '1 h 20 min', '1 h 40 min', '2 h']
    """
    numbers = np.asarray(values, float)
    top = float(np.nanmax(numbers, initial=0.0))
    if top < 120:
        return {"tickmode": None, "tickvals": None, "ticktext": None}
    if log:
        low = float(np.nanmin(numbers[numbers > 0]))
        ticks = [t for t in TIMES if low / 10 <= t <= 10 * top]
    else:
        step = next((step for step in TIME_STEPS if top <= most * step), 0)
        step = step or math.ceil(top / most / 86_400) * 86_400
        ticks = [step * i for i in range(math.ceil(top / step) + 1)]
    return {"tickmode": "array", "tickvals": ticks, "ticktext": list(map(_clock, ticks))}


def _clock(seconds: int) -> str:
    """Days, hours, minutes and seconds, without those that are 0."""
    days, rest = divmod(seconds, 86_400)
    parts = {"d": days, "h": rest // 3600, "min": rest // 60 % 60, "s": rest % 60}
    return " ".join(f"{number} {unit}" for unit, number in parts.items() if number) or "0"


def number(name: str, unit: str) -> str:
    """Template for a number on hover: with SI prefixes, but no thousands of seconds.

    >>> number("y", "B"), number("y", "s")
    ('%{y:.4~s}B', '%{y:,.4~r} s')
    """
    return f"%{{{name}:,.4~r}} s" if unit == "s" else f"%{{{name}:.4~s}}{unit}"
