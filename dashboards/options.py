"""Panels by name, and what each can be told besides the runs."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, get_type_hints

from fedsim.dashboards.page import panels


@dataclass(frozen=True)
class Option:
    """A keyword argument of a panel's ``draw``."""

    name: str
    annotation: Any
    default: Any


def by_name() -> dict[str, Any]:
    """The panels by their file name, in the order of the page."""
    return {_name(panel): panel for panel in panels()}


def options(panel: Any) -> dict[str, Option]:
    """The keyword arguments of a panel besides the runs, with their defaults."""
    _, *others = inspect.signature(panel.draw).parameters.values()
    hints = get_type_hints(panel.draw)
    return {
        p.name: Option(p.name, hints.get(p.name, Any), p.default)
        for p in others
        if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
    }


def _name(panel: Any) -> str:
    named = getattr(panel, "__name__", None) or getattr(panel, "title", "panel")
    return str(named).rsplit(".", 1)[-1].lower().replace(" ", "_")
