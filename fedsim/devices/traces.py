"""Traces in FedScale's form: who was available when, and how fast devices and links were.

Both are mappings by client id. An availability entry has the keys ``active: [s, ...]``,
``inactive: [s, ...]`` and ``finish_time: s``: the client is there from ``active[i]`` until
``inactive[i]``, and the pattern repeats after ``finish_time``. A capacity entry has ``computation``
(ms of inference an example) and ``communication`` (kilobits a second). FedScale ships pickles,
which can run code when they are loaded; ``convert`` turns one into JSON with a reader that knows
plain values only.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import re
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from fedsim.errors import OutputError, ScenarioError


@dataclass(frozen=True)
class Presence:
    """When one recorded device was available; an end does not belong to its interval.

    >>> one = Presence((0.0, 10.0), (5.0, 12.0), 20.0)
    >>> one.at(23.0), one.at(15.0)
    ((True, 25.0), (False, 20.0))
    """

    starts: tuple[float, ...]
    ends: tuple[float, ...]
    period_s: float

    def at(self, time: float) -> tuple[bool, float]:
        """Whether the device is available at a time, and until when that holds."""
        lap = math.floor(time / self.period_s) * self.period_s
        place = time - lap
        i = bisect_right(self.starts, place) - 1
        if i >= 0 and place < self.ends[i]:
            return True, self._end(i, lap)
        if not self.starts:
            return False, math.inf
        after = self.starts[i + 1] if i + 1 < len(self.starts) else self.period_s + self.starts[0]
        return False, lap + after

    def _end(self, i: int, lap: float) -> float:
        wraps = self.ends[i] == self.period_s and self.starts[0] == 0.0
        if not wraps:
            return lap + self.ends[i]
        whole = len(self.starts) == 1
        return math.inf if whole else lap + self.period_s + self.ends[0]


@cache
def presence(file: str) -> tuple[Presence, ...]:
    """The devices of an availability trace, in the file's order.

    Raises:
        ScenarioError: The file cannot be read, or intervals are out of order.
    """
    entries = read_json(Path(file))
    return tuple(_presence(entry, file, key) for key, entry in entries.items())


def _presence(entry: Any, file: str, key: str) -> Presence:
    try:
        return _checked(entry)
    except ScenarioError as error:
        error.where = _place(file, key)
        raise


def _place(file: str, key: str) -> str:
    """File, line and device, for errors."""
    text = Path(file).read_text(encoding="utf-8")
    found = re.search(rf"{re.escape(json.dumps(key))}\s*:", text)
    line = f":{text.count(chr(10), 0, found.start()) + 1}" if found else ""
    return f"{file}{line}, device {key}"


def _checked(entry: Any) -> Presence:
    try:
        starts = tuple(map(float, entry["active"]))
        ends = tuple(map(float, entry["inactive"]))
        period = float(entry["finish_time"])
    except (KeyError, TypeError, ValueError) as error:
        raise ScenarioError(
            f"is no availability entry ({type(error).__name__}: {error})",
            allowed="It needs active: [s, ...], inactive: [s, ...] and finish_time: s",
        ) from None
    if len(starts) != len(ends):
        raise ScenarioError(f"has {len(starts)} active and {len(ends)} inactive times")
    times = [t for pair in zip(starts, ends, strict=True) for t in pair]
    for i, (before, after) in enumerate(pairwise([0.0, *times, period])):
        if after < before or (after == before and i % 2 == 1):
            raise ScenarioError(
                f"intervals overlap or are out of order: {after:g} s comes after {before:g} s",
                hint=f"Nearest valid value: above {before:g}, up to finish_time = {period:g}",
            )
    if not period > 0:
        raise ScenarioError(f"finish_time is {period:g}, not positive")
    joined = [k for k in range(1, len(starts)) if starts[k] == ends[k - 1]]
    starts = tuple(t for k, t in enumerate(starts) if k not in joined)
    ends = tuple(t for k, t in enumerate(ends) if k + 1 not in joined)
    return Presence(starts, ends, period)


@cache
def capacities(file: str) -> tuple[tuple[float, float], ...]:
    """``(ms of inference an example, Mb/s)`` of each device, in the file's order.

    Raises:
        ScenarioError: The file cannot be read, or a figure is missing or not positive.
    """
    found = []
    for key, entry in read_json(Path(file)).items():
        values = [entry.get(k) if isinstance(entry, Mapping) else None for k in _CAPACITY]
        numbers = [float(v) for v in values if isinstance(v, int | float) and v > 0]
        if len(numbers) != len(_CAPACITY):
            raise ScenarioError(
                f"is no capacity entry: {entry!r}",
                where=_place(file, key),
                allowed="It needs positive computation (ms) and communication (kbit/s)",
            )
        found.append((numbers[0], numbers[1] / 1000))
    return tuple(found)


_CAPACITY = ("computation", "communication")


def read_json(file: Path) -> dict[str, Any]:
    """A JSON file that holds a mapping by device, with at least one entry.

    Raises:
        ScenarioError: It is something else, such as a pickle.
    """
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise ScenarioError(f"cannot be read: {error.strerror}", where=str(file)) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise ScenarioError(
            f"is not JSON: {error}",
            where=f"{file}{line}",
            hint=f"Pickles are not read; `fedsim convert-trace {file.name} trace.json` makes JSON",
        ) from None
    if not isinstance(content, dict) or not content:
        raise ScenarioError("holds no mapping of devices to entries", where=str(file))
    return content


class _PlainUnpickler(pickle.Unpickler):
    """Reads numbers, strings, lists and dictionaries; anything that would import is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it holds a {module}.{name}")


def convert(source: Path, target: Path) -> int:
    """Write a pickled trace as JSON; nothing in the pickle is run.

    Returns:
        The number of devices.

    Raises:
        ScenarioError: It is no pickle of plain values by device.
        OutputError: The target cannot be written.
    """
    try:
        content = _PlainUnpickler(io.BytesIO(source.read_bytes())).load()
    except OSError as error:
        raise ScenarioError(f"cannot be read: {error.strerror}", where=str(source)) from None
    except Exception as error:  # a damaged pickle raises anything
        raise ScenarioError(
            f"is no pickle of plain values: {error}",
            where=str(source),
            allowed="Numbers, strings, lists and dictionaries",
        ) from None
    if not isinstance(content, dict) or not content:
        raise ScenarioError("holds no mapping of devices to entries", where=str(source))
    try:
        lines = ",\n".join(f"{json.dumps(str(k))}: {json.dumps(v)}" for k, v in content.items())
        target.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror}", where=str(target)) from None
    return len(content)
