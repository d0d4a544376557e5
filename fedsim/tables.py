"""Run folders as pandas tables, and as Parquet files.

Each table begins with the columns ``run`` (folder), ``name``, ``strategy``, ``codec`` and ``seed``;
then come the keys of the run folder's records, as they are called there; one that has the name of
these columns gets an underscore after it.
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

FLOAT_HOLDS = 2**53
"""Larger whole numbers would be rounded in a column that lacks some."""
IDENTITY = ("run", "name", "strategy", "codec", "seed")


def rounds(runs: Iterable[Run]) -> DataFrame:
    """One row per run and round; round 0 is before training."""
    return _frame((run, run.rounds) for run in runs)


def clients(runs: Iterable[Run]) -> DataFrame:
    """One row per run, round and client that was asked."""
    return _frame((run, run.clients) for run in runs)


def steps(runs: Iterable[Run]) -> DataFrame:
    """One row per run and logged local step; none where the scenario has no ``log_steps``."""
    return _frame((run, run.steps) for run in runs)


def summaries(runs: Iterable[Run]) -> DataFrame:
    """One row per run: scores, totals by key, tags, status, options of the scenario as JSON."""
    return _frame((run, [_summary(run)]) for run in runs)


TABLES: dict[str, Callable[[Iterable[Run]], DataFrame]] = {
    "rounds": rounds,
    "clients": clients,
    "steps": steps,
    "summary": summaries,
}


def write_parquet(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Write all tables that have rows, each as one file over all runs.

    Raises:
        OutputError: A file cannot be written; one that was there is untouched.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, table in TABLES.items():
        frame = table(runs)
        if frame.empty:
            continue
        paths.append(folder / f"{name}.parquet")
        temporary = folder / f".{name}.{os.getpid()}.tmp"
        try:
            with writing(paths[-1]):
                frame.to_parquet(temporary, index=False)
                temporary.replace(paths[-1])
        finally:
            with suppress(OSError):
                temporary.unlink()
    return paths


def _frame(records: Iterable[tuple[Run, Iterable[Record]]]) -> DataFrame:
    from pandas import DataFrame, concat

    frames = [DataFrame(columns=list(IDENTITY))]
    for run, rows in records:
        frame = DataFrame(list(rows)).rename(columns={name: f"{name}_" for name in IDENTITY})
        for column in frame.select_dtypes("int64"):
            if frame[column].abs().max() > FLOAT_HOLDS:  # seeds, beside runs that have none
                frame[column] = frame[column].astype("Int64")
        for place, (column, value) in enumerate(_identity(run).items()):
            frame.insert(place, column, value)
        frames.append(frame)
    filled = [frame for frame in frames if len(frame)] or frames[:1]
    joined = concat(filled, ignore_index=True).infer_objects()  # None among numbers
    for column in [c for c in joined if joined[c].dtype.kind == "O"]:
        joined[column] = joined[column].map(_plain)
    return joined


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
