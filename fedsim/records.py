"""What a run folder says: identity, summary and environment of a run; its files, read tolerantly.

Nothing here is specific to a folder's layout; ``results`` is.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim._version import __version__
from fedsim.shapes import is_number

if TYPE_CHECKING:
    from fedsim.scenario import Plugin, Scenario

Record = dict[str, Any]
SCHEMA_VERSION = 1
LIBRARIES = ("flwr", "ray", "torch", "transformers", "peft", "datasets", "numpy")
SUMMED_GROUPS = ("comm", "time", "energy", "clients", "work")
"""Groups of round keys whose sum over rounds means something."""


def identity(scenario: Scenario) -> Record:
    """What names a run in tables: name, strategy, codec, seed."""
    chains = {"up": scenario.codec.up, "down": scenario.codec.down}
    codec = [f"{way} {'+'.join(map(_codec, chain))}" for way, chain in chains.items() if chain]
    return {
        "name": scenario.name,
        "strategy": scenario.strategy.name,
        "codec": ", ".join(codec) or "none",
        "seed": scenario.seed,
    }


def _codec(plugin: Plugin) -> str:
    feedback = plugin.options.get("error_feedback")
    named = feedback.get("name") if isinstance(feedback, Mapping) else feedback
    return plugin.name if named in (None, "none") else f"{plugin.name}/{named}"


def summarise(
    run: Mapping[str, Any],
    rounds: Sequence[Record],
    *,
    key_metric: tuple[str, str],
    weights_sha256: str | None = None,
    failed: bool | str = False,
    exit_code: int = 0,
) -> Record:
    """Build the content of summary.json.

    Args:
        run: As ``identity`` makes it.
        rounds: All round records, round 0 first.
        key_metric: Key in the records and its better direction: ``("eval/accuracy", "max")``.
        weights_sha256: Digest of the final trainable arrays.
        failed: False, or why the run could not finish.
        exit_code: Of the command.
    """
    name, mode = key_metric
    return {
        "schema_version": SCHEMA_VERSION,
        **{key: run[key] for key in ("name", "strategy", "codec", "seed")},
        "key_metric": {"name": name, "mode": mode, **_best(rounds, name, mode)},
        "final_round": rounds[-1]["round"] if rounds else None,
        "totals": _totals(rounds),
        "weights_sha256": weights_sha256,
        "failed": failed,
        "exit_code": exit_code,
    }


def _best(rounds: Sequence[Record], name: str, mode: str) -> Record:
    scores = [(finite(r[name]), r["round"]) for r in rounds if name in r]
    numbers = [(score, n) for score, n in scores if is_number(score)]
    if not numbers:
        return {"final": None, "best": None, "best_round": None}
    pick = max if mode == "max" else min
    best, first = pick(numbers, key=lambda pair: pair[0])  # the first one among equals
    last = scores[-1][0]
    return {"final": last if is_number(last) else None, "best": best, "best_round": first}


def _totals(rounds: Sequence[Record]) -> Record:
    """Sums of the groups that add up, the peak of memory, the last of privacy."""
    totals: Record = {}
    for record in rounds:
        for key, value in record.items():
            group, number = key.split("/")[0], finite(value)
            if isinstance(number, bool) or not isinstance(number, int | float):
                continue
            if group in SUMMED_GROUPS and not key.endswith("_cum"):
                totals[key] = totals.get(key, 0) + number
            elif group == "mem":
                totals[key] = max(totals.get(key, 0), number)
            elif group == "privacy":
                totals[key] = number
    return totals


LAYER_BYTES = re.compile(r"comm/(up|down)_([a-z]+)_bytes/(.+)")


def bytes_by_layer(record: Mapping[str, Any], way: str) -> dict[str, dict[str, int]]:
    """Bytes of each array by part, in one direction (``up`` or ``down``).

    Args:
        record: A round, or the ``totals`` of a summary, of a run with ``codec.by_layer``; of
            another run the result is empty.
        way: Up or down.

    >>> bytes_by_layer({"comm/up_values_bytes/conv.weight": 8, "comm/up_values_bytes": 9}, "up")
    {'conv.weight': {'values': 8}}
    """
    found: dict[str, dict[str, int]] = {}
    for key, value in record.items():
        match = LAYER_BYTES.fullmatch(key)
        if match and match[1] == way:
            found.setdefault(match[3], {})[match[2]] = value
    return found


def environment() -> Record:
    """Versions, machine, git state of the current folder, command line."""
    return {
        "schema_version": SCHEMA_VERSION,
        "command": shlex.join(sys.argv),
        "versions": {
            "fedsim": __version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in LIBRARIES},
        },
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "memory_bytes": _memory_bytes(),
        "git": _git_state(),
    }


@cache
def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on Windows
        return None


def _git_state() -> Record | None:
    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
    return None if commit is None else {"commit": commit, "dirty": bool(changes)}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def finite(value: Any) -> Any:
    """A value that strict JSON can hold: plain types, None in place of NaN and infinities."""
    if hasattr(value, "tolist"):  # NumPy's scalars and arrays
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return value


def dumps(record: Mapping[str, Any], indent: int | None = None) -> str:
    """A record as strict JSON, on one line unless ``indent`` is given."""
    return json.dumps(finite(record), allow_nan=False, indent=indent)


def strict_json(record: Mapping[str, Any]) -> str:
    """A record of plain, finite values as one line, in a third of the time of ``dumps``.

    Raises:
        TypeError: A value is not of a plain type.
        ValueError: A value is NaN or infinite.
    """
    return json.dumps(record, allow_nan=False)


def read_text(path: Path, problems: list[str]) -> str | None:
    """Content of a file, or None with a note in ``problems``."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {error.strerror}")
        return None


def read_json(path: Path, problems: list[str], expected: bool = True) -> Record | None:
    """A JSON object, or None; noted in ``problems`` unless the file is not expected yet."""
    if not expected and not path.exists():
        return None
    text = read_text(path, problems)
    record = None if text is None else _parsed(text)
    if text is not None and record is None:
        problems.append(f"{path.name} is not a JSON object")
    return record


def read_yaml(path: Path, problems: list[str]) -> Record:
    """A YAML mapping; an empty one with a note in ``problems`` when it cannot be read."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    text = read_text(path, problems)
    try:
        value = YAML(typ="safe", pure=True).load(text or "{}")
    except YAMLError:
        value = None
    if isinstance(value, dict):
        return value
    problems.append(f"{path.name} is not a YAML mapping")
    return {}


def read_rounds(path: Path, problems: list[str]) -> list[Record]:
    """The records of a JSONL file that have a round number."""
    records = list(read_lines(path, problems))
    numbered = [r for r in records if is_number(r.get("round")) and isinstance(r["round"], int)]
    if len(numbered) < len(records):
        _note(problems, f"{path.name}: {len(records) - len(numbered)} records have no round number")
    return numbered


def by_key(rounds: Sequence[Record]) -> dict[str, tuple[list[int], list[Any]]]:
    """Of each key: the rounds that have it, and its values there."""
    columns: dict[str, tuple[list[int], list[Any]]] = {}
    for keys, stretch in itertools.groupby(rounds, key=tuple):  # transposed at once
        table = dict(zip(keys, zip(*(r.values() for r in stretch), strict=True), strict=True))
        for key, values in table.items():
            numbers, found = columns.setdefault(key, ([], []))
            numbers.extend(table["round"])
            found.extend(values)
    return columns


def read_lines(path: Path, problems: list[str]) -> Iterator[Record]:
    """Records of a JSONL file; a line that is none (torn by a crash, say) is noted and left out."""
    if not path.is_file():
        _note(problems, f"{path.name} is missing")
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            record = _parsed(line)
            if record is not None:
                yield record
            else:
                torn = "" if line.endswith("\n") else " (torn: the run was cut off or is writing)"
                _note(problems, f"{path.name}:{number} is not a record and is left out{torn}")


def _parsed(text: str) -> Record | None:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _note(problems: list[str], text: str) -> None:
    if text not in problems:
        problems.append(text)
