"""Lines of clients.jsonl as a table: read once per run, a few hundred thousand in under a second.

``ClientTable.of(run)`` reads the file with DuckDB, which is given the columns that panels use, so
that nothing is guessed from the first lines; ``ClientTable.each(runs)`` reads many files at once,
which takes a quarter of the time. What a run did not write is NULL. A line that is no
record, or that has no round or client, is left out and noted in the run's problems.
"""

from __future__ import annotations

import glob
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.results import Run

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

COLUMNS = {
    "round": "BIGINT",
    "client": "BIGINT",
    "stage": "VARCHAR",
    "status": "VARCHAR",
    "num_examples": "DOUBLE",
    "train_loss": "DOUBLE",
    "staleness": "DOUBLE",
    "device": "VARCHAR",
    "up_bytes": "DOUBLE",
    "down_bytes": "DOUBLE",
    "time/wall_s": "DOUBLE",
    "time/virtual_s": "DOUBLE",
    "time/end_s": "DOUBLE",
    "time/download_s": "DOUBLE",
    "time/compute_s": "DOUBLE",
    "time/upload_s": "DOUBLE",
    "energy/joules": "DOUBLE",
    "mem/peak_bytes": "DOUBLE",
}
"""Columns of every table, and ``score``: the key metric on the client's own test rows."""
SCORE = "score"
_KEPT = "_client_table"
_INDEX = "file_index"
"""Column that DuckDB knows of each line: the place of its file among those that were read."""
FILE = "clients.jsonl"
MOST_BYTES = 256 * 2**20
"""Size of the files that are read together."""


@dataclass(frozen=True, eq=False)
class ClientTable:
    """The lines of one run's clients.jsonl.

    Attributes:
        rows: All sound lines with ``COLUMNS`` and ``score``, in the order of the file. What is
            selected from them comes in no fixed order: sort it.
    """

    rows: pa.Table

    @classmethod
    def of(cls, run: Run) -> ClientTable:
        """The table of a run as it was when first asked for; kept with the run."""
        (table,) = cls.each([run])
        return table

    @classmethod
    def each(cls, runs: Iterable[Run]) -> list[ClientTable]:
        """The same for several runs; files that were not read before are read together."""
        runs = list(runs)
        new = sorted((run for run in runs if _KEPT not in run.__dict__), key=score_column)
        for score, alike in itertools.groupby(new, key=score_column):
            for together in _batches(alike):
                for run, rows in zip(together, _read(together, score), strict=True):
                    run.__dict__[_KEPT] = cls(rows)
        return [run.__dict__[_KEPT] for run in runs]

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Rows that a SELECT over the table ``clients`` returns."""
        connection = _connection().cursor()
        connection.register("clients", self.rows)
        try:
            return connection.execute(sql).fetchall()
        finally:
            connection.close()


def score_column(run: Run) -> str:
    """Name in clients.jsonl of the metric that the run is judged by."""
    return run.key_metric[0].rsplit("/", 1)[-1]


@lru_cache(maxsize=1)
def _connection() -> duckdb.DuckDBPyConnection:
    """DuckDB in memory; it fetches no extensions."""
    import duckdb

    off = ("autoinstall_known_extensions", "autoload_known_extensions")
    return duckdb.connect(":memory:", config=dict.fromkeys(off, "false"))


def _batches(runs: Iterable[Run]) -> Iterator[list[Run]]:
    """Runs whose files are read together, so that what is read fits into memory twice."""
    batch: list[Run] = []
    total = 0
    for run in runs:
        size = (run.path / FILE).stat().st_size if (run.path / FILE).is_file() else 0
        if batch and total + size > MOST_BYTES:
            yield batch
            batch, total = [], 0
        batch.append(run)
        total += size
    if batch:
        yield batch


def _read(runs: Sequence[Run], score: str) -> list[pa.Table]:
    """The sound lines of each run; ``score`` is the column that becomes ``SCORE``."""
    import pyarrow.compute as pc

    paths = [run.path / FILE for run in runs if (run.path / FILE).is_file()]
    lines = _lines(paths, score)
    counted = pc.value_counts(lines[_INDEX]).to_pylist()
    counts = {count["values"]: count["counts"] for count in counted}
    ends = itertools.accumulate((counts.get(i, 0) for i in range(len(paths))), initial=0)
    slices = dict(zip(paths, itertools.pairwise(ends), strict=True))
    tables = []
    for run in runs:
        if run.path / FILE not in slices:
            _note(run, f"{FILE} is missing")
        start, end = slices.get(run.path / FILE, (0, 0))
        rows = lines.slice(start, end - start).drop_columns(_INDEX)
        sound = rows.filter(_is_sound(rows))
        if unsound := rows.num_rows - sound.num_rows:
            what = "1 line is no record" if unsound == 1 else f"{unsound} lines are no records"
            _note(run, f"{FILE}: {what} of a client and left out (torn, or being written)")
        tables.append(sound)
    return tables


def _lines(paths: Sequence[Path], score: str) -> pa.Table:
    """All lines of some files one after the other, and the index of the file of each."""
    connection = _connection().cursor()
    if not paths:
        return connection.sql(_empty([*COLUMNS, SCORE, _INDEX])).to_arrow_table()
    named = [*map(_quoted, COLUMNS), f"{_quoted(score)} AS {SCORE}", _INDEX]
    lines = connection.sql(
        f"SELECT {', '.join(named)} FROM read_json($paths, columns = $columns, "
        "format = 'newline_delimited', ignore_errors = true)",
        params={
            "paths": [glob.escape(str(path)) for path in paths],
            "columns": {**COLUMNS, **({} if score in COLUMNS else {score: "DOUBLE"})},
        },
    )
    return lines.to_arrow_table().combine_chunks()


def _is_sound(rows: pa.Table) -> pa.Array:
    import pyarrow.compute as pc

    return pc.and_(pc.is_valid(rows["round"]), pc.is_valid(rows["client"]))


def _empty(names: list[str]) -> str:
    casts = (f"CAST(NULL AS {COLUMNS.get(n, 'DOUBLE')}) AS {_quoted(n)}" for n in names)
    return f"SELECT {', '.join(casts)} WHERE false"


def _quoted(name: str) -> str:
    """A column's name in SQL.

    >>> _quoted('time/wall_s')
    '"time/wall_s"'
    """
    return '"' + name.replace('"', '""') + '"'


def _note(run: Run, problem: str) -> None:
    if problem not in run.problems:
        run.problems.append(problem)
