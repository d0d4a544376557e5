"""Run folders as pandas tables, and as Parquet files.

Each table begins with the columns ``run`` (folder), ``name``, ``strategy``, ``codec`` and ``seed``;
then come the keys of the run folder's records, as they are called there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.differences import tags
from fedsim.records import Record
from fedsim.results import Run, writing

if TYPE_CHECKING:
    from pandas import DataFrame

IDENTITY = ("run", "name", "strategy", "codec", "seed")


def rounds(runs: Iterable[Run]) -> DataFrame:
    """One row per run and round; round 0 is before training."""
    return _frame((run, record) for run in runs for record in run.rounds)


def clients(runs: Iterable[Run]) -> DataFrame:
    """One row per run, round and client that was asked."""
    return _frame((run, record) for run in runs for record in run.clients)


def summaries(runs: Iterable[Run]) -> DataFrame:
    """One row per run: scores, totals by key, tags, status, options of the scenario as JSON."""
    return _frame((run, _summary(run)) for run in runs)


TABLES: dict[str, Callable[[Iterable[Run]], DataFrame]] = {
    "rounds": rounds,
    "clients": clients,
    "summary": summaries,
}


def write_parquet(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Write all three tables, each as one file over all runs.

    Raises:
        OutputError: A file cannot be written; one that was there is untouched.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, table in TABLES.items():
        paths.append(folder / f"{name}.parquet")
        temporary = folder / f".{name}.{os.getpid()}.tmp"
        try:
            with writing(paths[-1]):
                table(runs).to_parquet(temporary, index=False)
                temporary.replace(paths[-1])
        finally:
            with suppress(OSError):
                temporary.unlink()
    return paths


def _frame(rows: Iterable[tuple[Run, Record]]) -> DataFrame:
    from pandas import DataFrame

    known: dict[Path, Record] = {}
    lines = []
    for run, record in rows:
        if run.path not in known:
            known[run.path] = _identity(run)
        lines.append({**known[run.path], **record})
    columns = list(IDENTITY) if not lines else None
    frame = DataFrame(lines, columns=columns)
    for column in [c for c in frame if frame[c].dtype.kind == "O"]:
        frame[column] = frame[column].map(_plain)
    return frame


def _identity(run: Run) -> Record:
    overview, path = run.overview, run.path.resolve()
    return {
        "run": f"{path.parent.name}/{path.name}",
        "name": run.name,
        "strategy": str(overview["strategy"]),
        "codec": str(overview["codec"]),
        "seed": run.seed,
    }


def _summary(run: Run) -> Record:
    overview = run.overview
    metric, mode = run.key_metric
    scores = overview.get("key_metric", {})
    failed = overview.get("failed")
    return {
        "status": run.status,
        "started": run.started,
        "tags": ", ".join(tags(run)),
        "rounds": overview.get("final_round"),
        "metric": metric,
        "mode": mode,
        **{key: scores.get(key) for key in ("final", "best", "best_round")},
        **overview.get("totals", {}),
        "weights_sha256": overview.get("weights_sha256"),
        "failed": failed if isinstance(failed, str) else "",
        "exit_code": overview.get("exit_code"),
        "scenario": json.dumps(run.scenario, default=str),
        "path": str(run.path),
    }


def _plain(value: Any) -> Any:
    """A value that may stand in one column with texts; lists and mappings become JSON."""
    return value if value is None or isinstance(value, str) else json.dumps(value, default=str)
