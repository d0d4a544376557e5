"""Numbers as people read them: decimal bytes, time in two units, scores in four digits."""

from __future__ import annotations

MISSING = "–"
"""Shown for what was not measured."""


def human_bytes(number: float | None) -> str:
    """Decimal units.

    >>> human_bytes(1_234_567), human_bytes(999), human_bytes(0)
    ('1.23 MB', '999 B', '0 B')
    """
    if number is None:
        return MISSING
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(number) < 999.5 or unit == "TB":
            break
        number /= 1000
    return f"{number:.3g} {unit}" if abs(number) < 999.5 else f"{number:.0f} {unit}"


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
