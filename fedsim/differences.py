"""In which keys scenarios differ, and short names for those keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

DEFAULT = "(default)"
"""Shown for a key that a scenario leaves out."""


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """The shortest endings of dotted keys that tell them apart.

    >>> short_names(["strategy.name", "data.alpha", "x.alpha"])
    {'strategy.name': 'strategy', 'data.alpha': 'data.alpha', 'x.alpha': 'x.alpha'}
    """
    plain = {key: [p for p in key.split(".") if not p.isdigit()] for key in keys}
    for parts in plain.values():
        if parts[-1] == "name" and len(parts) > 1:
            parts.pop()  # the name of a plug-in is called like its section
    names: dict[str, str] = {}
    for key, parts in plain.items():
        others = [".".join(p) for k, p in plain.items() if k != key]
        endings = [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]
        clear = [e for e in endings if not any(f".{o}".endswith(f".{e}") for o in others)]
        names[key] = clear[0] if clear else key
    return names


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings and lists as one mapping with dotted keys.

    >>> flatten({"codec": {"up": [{"name": "topk"}], "down": []}})
    {'codec.up.0.name': 'topk', 'codec.down': []}
    """
    if isinstance(value, list) and value:
        value = dict(enumerate(value))
    if not isinstance(value, Mapping) or not value:
        return {prefix: value} if prefix else {}
    result = {}
    for key, inner in value.items():
        result.update(flatten(inner, f"{prefix}.{key}" if prefix else str(key)))
    return result


def differing(scenarios: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys of flat scenarios whose values are not the same everywhere, in order of appearance."""
    keys = dict.fromkeys(key for scenario in scenarios for key in scenario)
    return [key for key in keys if len({shown(scenario, key) for scenario in scenarios}) > 1]


def shown(scenario: Mapping[str, Any], key: str) -> str:
    """A value of a flat scenario as YAML would write it."""
    value = scenario.get(key, DEFAULT)
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
