"""Numbers as people read them: decimal bytes, time in two units, scores in four digits."""

from __future__ import annotations

from collections.abc import Sequence

MISSING = "–"
"""Shown for what was not measured."""


def human_bytes(number: float | None) -> str:
    """Decimal units.

    >>> human_bytes(1_234_567), human_bytes(999), human_bytes(0)
    ('1.23 MB', '999 B', '0 B')
    """
    if number is None:
        return MISSING
    return _decimal(number, ("B", "kB", "MB", "GB", "TB"))


def human_time(seconds: float | None) -> str:
    """The two largest units.

    >>> human_time(3.21), human_time(125), human_time(3700)
    ('3.2 s', '2 min 5 s', '1 h 1 min')
    """
    if seconds is None:
        return MISSING
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def human_score(value: float | None) -> str:
    """Four significant digits.

    >>> human_score(0.912345), human_score(None)
    ('0.9123', '–')
    """
    return MISSING if value is None else f"{value:.4g}"


def human_energy(joules: float | None) -> str:
    """Joules with a decimal prefix.

    >>> human_energy(1234.5), human_energy(0), human_energy(2.5e7)
    ('1.23 kJ', '0 J', '25 MJ')
    """
    if joules is None:
        return MISSING
    return _decimal(joules, ("J", "kJ", "MJ", "GJ"))


def _decimal(number: float, units: Sequence[str]) -> str:
    for unit in units[:-1]:
        if abs(number) < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} {units[-1]}" if abs(number) < 999.5 else f"{number:.0f} {units[-1]}"
