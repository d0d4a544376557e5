"""Measured devices: a CSV or JSON table with a row per device, or FedScale's capacity trace.

Columns are the keys of a profile and, with ``downlink_mbps``, ``uplink_mbps`` and ``latency_s``,
those of a network; what a table leaves out is taken from the base profile and its network, without
the base's spread of speeds.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fedsim.devices import profiles, traces
from fedsim.devices.profiles import Network, Profile
from fedsim.errors import ScenarioError, did_you_mean

NETWORK_COLUMNS = ("downlink_mbps", "uplink_mbps", "latency_s")


@dataclass(frozen=True)
class Row:
    """One measured device."""

    name: str
    profile: Profile
    network: Network


@cache
def read(file: str, base: str, network: str | None) -> tuple[Row, ...]:
    """The devices of a table or a capacity trace.

    Args:
        file: A ``.csv`` or ``.json`` file.
        base: Profile that fills what the rows leave out.
        network: Instead of the base profile's network.

    Raises:
        ScenarioError: The file cannot be read, or a figure is wrong.
    """
    profile = profiles.profile(base)
    link = profiles.network(network or profile.network)
    path = Path(file)
    if path.suffix == ".csv":
        rows = _csv_rows(path)
    else:
        rows = _json_rows(path)
    if not rows:
        raise ScenarioError("has no rows", where=file)
    return tuple(_row(where, values, profile, link) for where, values in rows)


def _csv_rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            return [
                (f"{path}:{reader.line_num}", {k: v for k, v in row.items() if v not in ("", None)})
                for row in reader
            ]
    except OSError as error:
        raise ScenarioError(f"cannot be read: {error.strerror}", where=str(path)) from None
    except UnicodeDecodeError as error:
        raise ScenarioError(f"is not a text file: {error}", where=str(path)) from None


def _json_rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        content = traces.read_json(path)  # says what is wrong
    items = content.items() if isinstance(content, dict) else enumerate(content)
    rows = []
    for key, entry in items:
        where = f"{path}, device {key}"
        if not isinstance(entry, Mapping):
            raise ScenarioError("is no mapping of figures", where=where)
        rows.append((where, _capacity(dict(entry))))
    return rows


def _capacity(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of FedScale's capacity trace in our keys; another entry as it is."""
    if entry.keys() != {"computation", "communication"}:
        return entry
    rate = _number(entry["communication"])
    mbps = rate / 1000 if isinstance(rate, float) else rate
    return {"inference_ms": entry["computation"], "downlink_mbps": mbps, "uplink_mbps": mbps}


def _row(where: str, values: dict[str, Any], base: Profile, network: Network) -> Row:
    numbers = {k: _number(v) for k, v in values.items()}
    name = str(numbers.pop("name", where.rsplit(" ", 1)[-1].rsplit("/", 1)[-1]))
    known = [*(k for k in Profile.model_fields if k not in ("network", "modes")), *NETWORK_COLUMNS]
    for key in numbers:
        if key not in known:
            raise ScenarioError(
                f"unknown column '{key}'",
                where=where,
                hint=did_you_mean(key, known),
                allowed=f"Columns: name, {', '.join(known)}",
            )
    link = {k: v for k, v in numbers.items() if k in NETWORK_COLUMNS}
    own = {k: v for k, v in numbers.items() if k not in NETWORK_COLUMNS}
    return Row(
        name,
        profiles.check_values(
            Profile, {**base.model_dump(exclude_unset=True), "speed_sigma": 0.0, **own}, where
        ),
        profiles.check_values(Network, {**network.model_dump(exclude_unset=True), **link}, where),
    )


def _number(value: Any) -> Any:
    try:
        return float(value)
    except (TypeError, ValueError):
        return value
