"""Which runs belong together, in which keys their scenarios differ, and names for both."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedsim.records import dumps
from fedsim.results import Run

DEFAULT = "(default)"
"""Shown for a key that a scenario leaves out."""
SEED_KEYS = ("seed", "seeds")
NO_RESULT_KEYS = ("tags", "track")
"""Sections that decide nothing about a result."""
MAX_DETAILS = 40
"""Characters of differing options in a label; longer ones give way to a number."""


def group(runs: Iterable[Run]) -> list[list[Run]]:
    """Runs of equal scenarios and different seeds, together.

    A seed that comes a second time (the same scenario was run again) opens another group. A run
    without a readable scenario stays alone.
    """
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        rest = {k: v for k, v in run.scenario.items() if k not in SEED_KEYS + NO_RESULT_KEYS}
        key = dumps(rest) if run.scenario else str(run.path)
        repeat = 0
        while any(run.seed == other.seed for other in groups.get((key, str(repeat)), [])):
            repeat += 1
        groups.setdefault((key, str(repeat)), []).append(run)
    return list(groups.values())


def tags(run: Run) -> tuple[str, ...]:
    """Words that the scenario gave the run to be found by."""
    given = run.scenario.get("tags", ())
    return tuple(map(str, given)) if isinstance(given, list | tuple) else (str(given),)


def labels(groups: Sequence[Sequence[Run]]) -> list[str]:
    """A distinct label for each group: its name, and where names repeat, what differs.

    Where that is long or not distinct (the same scenario, run again), the groups of this name are
    numbered instead.
    """
    details = _details([members[0] for members in groups])
    texts = [f"{g[0].name} ({d})" if d else g[0].name for g, d in zip(groups, details, strict=True)]
    unclear = {
        members[0].name
        for members, detail, text in zip(groups, details, texts, strict=True)
        if len(detail) > MAX_DETAILS or texts.count(text) > 1
    }
    seen: Counter[str] = Counter()
    for i, members in enumerate(groups):
        name = members[0].name
        if name in unclear:
            seen[name] += 1
            texts[i] = f"{name} #{seen[name]}"
    return texts


def _details(runs: Sequence[Run]) -> list[str]:
    """In what each run's scenario differs from the others of its name."""
    flat = [flatten(run.scenario) for run in runs]
    alike: dict[str, list[Mapping[str, Any]]] = {}
    for run, scenario in zip(runs, flat, strict=True):
        alike.setdefault(run.name, []).append(scenario)
    keys = {
        name: [k for k in differing(scenarios) if k.split(".")[0] not in SEED_KEYS]
        for name, scenarios in alike.items()
    }
    short = {name: short_names(own) for name, own in keys.items()}
    return [
        ", ".join(f"{named}={shown(scenario, key)}" for key, named in short[run.name].items())
        for run, scenario in zip(runs, flat, strict=True)
    ]


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
    """Nested mappings as one mapping with dotted keys; so are lists of mappings.

    >>> flatten({"codec": {"up": [{"name": "topk"}], "down": []}, "modules": ["q", "v"]})
    {'codec.up.0.name': 'topk', 'codec.down': [], 'modules': ['q', 'v']}
    """
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping) or not value:
        return {prefix: value} if prefix else {}
    result = {}
    for key, inner in value.items():
        result.update(flatten(inner, f"{prefix}.{key}" if prefix else str(key)))
    return result


def differing(scenarios: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys of flat scenarios whose values are not the same everywhere, in order of appearance."""
    keys = dict.fromkeys(key for scenario in scenarios for key in scenario if _matters(key))
    return [key for key in keys if len({shown(scenario, key) for scenario in scenarios}) > 1]


def _matters(key: str) -> bool:
    return key.split(".")[0] not in NO_RESULT_KEYS


def shown(scenario: Mapping[str, Any], key: str) -> str:
    """A value of a flat scenario as YAML would write it."""
    value = scenario.get(key, DEFAULT)
    return value if isinstance(value, str) else json.dumps(value, default=str).replace('"', "")
