"""What ``fedsim export`` does: finished runs, as Parquet or to a tracker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from fedsim import registry, tables, tracking
from fedsim.errors import FedsimError, PluginError, RunError, did_you_mean
from fedsim.results import find_runs

PARQUET = "parquet"


def export(paths: list[str], to: str, out: Path | None) -> None:
    """Send runs to a tracker, or write them as Parquet.

    Args:
        paths: Run folders, folders above some, or patterns.
        to: ``parquet``, a tracker, or a tracker with options as YAML:
            ``{name: wandb, project: x}``.
        out: Folder for what is written, instead of the target's own place.

    Raises:
        PluginError: The target is unknown, not installed, or refuses its options.
        RunError: The tracker failed.
    """
    runs = find_runs(paths)
    section = _section(to, out)
    if section["name"] == PARQUET:
        for path in tables.write_parquet(runs, Path(section.get("folder", "tables"))):
            print(path)
        return
    for run in runs:
        tracker = tracking.build(section)
        try:
            tracking.export(run, tracker)
        except FedsimError:
            raise
        except Exception as error:
            what = f"{section['name']} refused the run: {type(error).__name__}: {error}"
            raise RunError(what, where=str(run.path)) from error
        print(f"{run.path}: {len(run.rounds)} rounds to {section['name']}")


def _section(text: str, out: Path | None) -> dict[str, Any]:
    try:
        value = YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        value = None
    section = {"name": value} if isinstance(value, str) else value
    known = [PARQUET, *registry.available("trackers")]
    if not isinstance(section, dict) or not isinstance(section.get("name"), str):
        raise PluginError(f"--to {text}: is no name, nor a mapping with one", allowed=_all(known))
    if section["name"] not in known and ":" not in section["name"]:
        raise PluginError(
            f"there is no target called '{section['name']}'",
            hint=did_you_mean(section["name"], known),
            allowed=_all(known),
        )
    if section["name"] == PARQUET and (wrong := set(section) - {"name", "folder"}):
        raise PluginError(f"parquet has no option '{wrong.pop()}'", allowed="Options: folder")
    return section | ({"folder": str(out)} if out else {})


def _all(known: list[str]) -> str:
    return f"Targets: {', '.join(known)}; or module:Class"
