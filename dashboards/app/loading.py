"""Run folders as they are now; a folder is read again only when one of its files has changed."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import streamlit as st

from fedsim.errors import OutputError
from fedsim.results import MARKERS, Run

WATCHED = (
    "STATUS",
    "rounds.jsonl",
    "clients.jsonl",
    "steps.jsonl",
    "summary.json",
    "events.log",
)
Stamp = tuple[tuple[int, int], ...]
"""Time of change and size of each watched file."""
Stamps = dict[str, Stamp]
"""By run folder."""


def stamps(paths: Sequence[str]) -> Stamps:
    """The state of all run folders that are meant."""
    return {str(folder): _stamp(folder) for path in paths for folder in _folders(path)}


def runs(stamped: Stamps) -> list[Run]:
    """The runs, sorted by start time; one that has gone in the meantime is left out."""
    found = [_opened(folder, stamp) for folder, stamp in stamped.items()]
    return sorted((run for run in found if run), key=lambda run: (run.started, run.path))


def stamp_of(some: Sequence[Run]) -> str:
    """What changes when one of the runs does, to remember figures and tables by."""
    found = [(str(run.path), _stamp(run.path)) for run in some]
    return hashlib.sha256(repr(found).encode()).hexdigest()  # Streamlit hashes texts quickly


def _folders(path: str) -> list[Path]:
    matches = [path] if Path(path).exists() else sorted(glob.glob(path, recursive=True))
    found = []
    for match in matches:
        for folder, below, files in os.walk(match):
            if any(marker in files for marker in MARKERS):
                found.append(Path(folder).resolve())
                below.clear()  # a run folder holds no other
    return found


def _stamp(folder: Path) -> Stamp:
    result = []
    for name in WATCHED:
        try:
            status = (folder / name).stat()
            result.append((status.st_mtime_ns, status.st_size))
        except OSError:
            result.append((0, -1))
    return tuple(result)


@st.cache_resource(max_entries=2000, show_spinner=False)
def _opened(folder: str, stamp: Stamp) -> Run | None:
    try:
        return Run.open(folder)
    except OutputError:
        return None
