"""What a run folder's JSON must look like to be used; what does not is left out, and said so.

A folder may come from another version of fedsim, or from an editor. Readers of ``Run`` rely on the
shapes here and check nothing themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any], bool]


def summary(record: Mapping[str, Any] | None, problems: list[str]) -> dict[str, Any] | None:
    """The parts of summary.json that have the right shape."""
    if record is None:
        return None
    kept = _kept(record, SUMMARY, "summary.json", problems)
    if "totals" in kept:
        checks = dict.fromkeys(kept["totals"], is_number)
        kept["totals"] = _kept(kept["totals"], checks, "summary.json: totals", problems)
    return kept


def env(record: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """The parts of env.json that have the right shape."""
    kept = _kept(record, ENV, "env.json", problems)
    if "run" in kept:
        kept["run"] = _kept(kept["run"], RUN, "env.json: run", problems)
    return kept


def _kept(
    record: Mapping[str, Any], checks: Mapping[str, Check], file: str, problems: list[str]
) -> dict[str, Any]:
    odd = [key for key, check in checks.items() if key in record and not check(record[key])]
    problems += [f"{file}: '{key}' is not what fedsim writes there and is left out" for key in odd]
    return {key: value for key, value in record.items() if key not in odd}


def is_number(value: Any) -> bool:
    """Whether a value is a number; truth values are not.

    >>> is_number(1), is_number(0.5), is_number(True), is_number("1")
    (True, True, False, False)
    """
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_metric(value: Any) -> bool:
    """Name and better direction, as env.json has them; null where the run knew none."""
    known = isinstance(value, list | tuple) and len(value) == 2
    return value is None or (known and _is_text(value[0]) and value[1] in ("min", "max"))


def _is_key_metric(value: Any) -> bool:
    """Name and better direction, final and best score and its round, as summary.json has them."""
    return (
        _is_mapping(value)
        and _is_metric([value.get("name"), value.get("mode")])
        and all(value.get(k) is None or is_number(value[k]) for k in ("final", "best"))
        and (value.get("best_round") is None or _is_integer(value["best_round"]))
    )


IDENTITY: dict[str, Check] = {
    "name": _is_text,
    "strategy": _is_text,
    "codec": _is_text,
    "seed": _is_integer,
}
SUMMARY: dict[str, Check] = {
    **IDENTITY,
    "key_metric": _is_key_metric,
    "totals": _is_mapping,
    "final_round": lambda value: value is None or _is_integer(value),
}
RUN: dict[str, Check] = {**IDENTITY, "key_metric": _is_metric}
ENV: dict[str, Check] = {
    "run": _is_mapping,
    "versions": _is_mapping,
    "started": _is_text,
    "command": _is_text,
}
