"""Lines of clients.jsonl as a table: read once per run, a few hundred thousand in under a second.

``ClientTable.of(run)`` reads the file with DuckDB, which is given the columns that panels use, so
that nothing is guessed from the first lines. What a run did not write is NULL. A line that is no
record, or that has no round or client, is left out and noted in the run's problems.
"""

from __future__ import annotations

import glob
from dataclasses import dataclass
from functools import lru_cache
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


@dataclass(frozen=True, eq=False)
class ClientTable:
    """The lines of one run's clients.jsonl.

    Attributes:
        rows: All sound lines with ``COLUMNS`` and ``score``, in no fixed order, since several
            threads read them: sort what you select.
    """

    rows: pa.Table

    @classmethod
    def of(cls, run: Run) -> ClientTable:
        """The table of a run as it was when first asked for; kept with the run."""
        kept = run.__dict__.get("_client_table")
        if kept is None:
            kept = run.__dict__["_client_table"] = cls(_read(run))
        assert isinstance(kept, cls)
        return kept

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
    """DuckDB in memory; it fetches no extensions, and may read lines in parallel."""
    import duckdb

    off = ("autoinstall_known_extensions", "autoload_known_extensions", "preserve_insertion_order")
    return duckdb.connect(":memory:", config=dict.fromkeys(off, "false"))


def _read(run: Run) -> pa.Table:
    path, connection = run.path / "clients.jsonl", _connection().cursor()
    score = score_column(run)
    columns = {**COLUMNS, **({} if score in COLUMNS else {score: "DOUBLE"})}
    if not path.is_file():
        _note(run, "clients.jsonl is missing")
        return connection.sql(_empty([*COLUMNS, SCORE])).to_arrow_table()
    lines = connection.read_json(
        glob.escape(str(path)),
        columns=columns,
        format="newline_delimited",
        ignore_errors=True,
    )
    named = ", ".join([*map(_quoted, COLUMNS), f"{_quoted(score)} AS {SCORE}"])
    everything = lines.project(named).to_arrow_table()
    sound = everything.filter(_is_sound(everything))
    if unsound := everything.num_rows - sound.num_rows:
        what = "1 line is no record" if unsound == 1 else f"{unsound} lines are no records"
        _note(run, f"clients.jsonl: {what} of a client and left out (torn, or being written)")
    return sound


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
