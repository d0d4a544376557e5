"""The run folder: ``RunFolder`` writes it, ``Run`` reads it.

A folder ``<root>/<name>/<time>-<digest>/`` holds

    scenario.yaml   as the user gave it           rounds.jsonl    a line a round; 0 = before round 1
    resolved.yaml   after parents and overrides   clients.jsonl   a line per client and round
    env.json        versions, machine, git state  steps.jsonl     a line a local step (log_steps)
    summary.json    at the end                    events.log      every warning
    STATUS          running | done | failed | interrupted

Keys of records are slash-grouped and carry their unit (``comm/up_bytes``). Quantities are those of
the round; ``*_cum`` are running totals. A key that was not measured in a round is left out. JSON
here is strict: NaN and infinities are written as null, and the first one of each key is noted in
events.log. Lines are on disk as soon as they are added, so a folder is readable during the run.
"""

from __future__ import annotations

import glob
import itertools
import logging
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim import shapes
from fedsim.errors import OutputError
from fedsim.records import (
    SCHEMA_VERSION,
    Record,
    by_key,
    dumps,
    environment,
    finite,
    identity,
    read_json,
    read_lines,
    read_rounds,
    read_text,
    read_yaml,
    strict_json,
    summarise,
)

if TYPE_CHECKING:
    from fedsim.scenario import Scenario

__all__ = [
    "Run",
    "RunFolder",
    "find_runs",
    "is_run_folder",
    "write_text",
    "writing",
]

log = logging.getLogger("fedsim")
STATUSES = ("running", "done", "failed", "interrupted")
STEPS = "steps.jsonl"
MARKERS = ("STATUS", "rounds.jsonl", "resolved.yaml")
"""A folder with one of these files is a run folder."""


@dataclass(frozen=True)
class RunFolder:
    """Writes one run folder. Holds no open file, so it needs no closing.

    Attributes:
        path: The folder.
    """

    path: Path
    _noted: set[str] = field(default_factory=set, repr=False, compare=False)

    @classmethod
    def create(
        cls,
        root: Path,
        scenario: Scenario,
        source: Path | None,
        key_metric: tuple[str, str] | None = None,
    ) -> RunFolder:
        """Make a new folder below ``root`` and write all that is known before the run.

        Args:
            root: Parent of all runs, such as ``runs``.
            scenario: What is run; one seed of it.
            source: The user's file, copied as it is; None writes the resolved text instead.
            key_metric: As for ``summarise``; lets readers judge the run before it has a summary.

        Raises:
            OutputError: The folder cannot be made or written.
        """
        now = datetime.now(UTC)
        stem = f"{now:%Y%m%d-%H%M%S}-{scenario.digest()}"
        with writing(root):
            folder = cls(_new_folder(Path(root), scenario.name, stem))
        resolved = scenario.to_yaml()
        given = source.read_bytes() if source else resolved.encode()
        with writing(folder.path):
            (folder.path / "scenario.yaml").write_bytes(given)
            for name in ("rounds.jsonl", "clients.jsonl", "events.log"):
                (folder.path / name).touch()
        write_text(folder.path / "resolved.yaml", resolved)
        run = {**identity(scenario), "key_metric": key_metric}
        given_as = str(source.absolute()) if source else None
        env = {"started": now.isoformat(), "source": given_as, "run": run, **environment()}
        write_text(folder.path / "env.json", dumps(env, indent=1))
        write_text(folder.path / "STATUS", "running\n")
        return folder

    @classmethod
    def reopen(cls, path: Path, last_round: int) -> RunFolder:
        """Continue a folder after ``last_round``: what was written later is taken back.

        Raises:
            OutputError: The folder cannot be read or written.
        """
        folder, problems = cls(path), list[str]()
        steps = [STEPS] if (path / STEPS).exists() else []
        for name in ("rounds.jsonl", "clients.jsonl", *steps):
            kept = [r for r in read_rounds(path / name, problems) if r["round"] <= last_round]
            write_text(path / name, "".join(f"{dumps(record)}\n" for record in kept))
        (path / "summary.json").unlink(missing_ok=True)
        for torn in (*path.glob(".*.tmp"), *path.glob("checkpoints/.*.tmp")):
            torn.unlink(missing_ok=True)  # its writer was killed
        write_text(path / "STATUS", "running\n")
        folder.event("INFO", f"resumed after round {last_round}")
        for problem in problems:
            log.warning("%s: %s", path, problem)
        return folder

    def add_round(self, record: Record) -> None:
        """Append one round to rounds.jsonl; NaN and infinities become null."""
        self._append("rounds.jsonl", [record])

    def add_clients(self, rows: Sequence[Record]) -> None:
        """Append the rows of a round's clients to clients.jsonl; NaN and infinities become null."""
        self._append("clients.jsonl", rows)

    def add_steps(self, rows: Sequence[Record]) -> None:
        """Append clients' local steps to steps.jsonl, which is there once there are some."""
        if rows:
            self._append(STEPS, rows)

    def event(self, level: str, message: str) -> None:
        """Append one line to events.log; line breaks in the message become `` | ``."""
        text = " | ".join(line.strip() for line in message.splitlines() if line.strip())
        self._write("events.log", f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {level} {text}\n")

    def finish(self, summary: Record, status: str) -> None:
        """Write summary.json (under a temporary name, then renamed), then STATUS.

        Args:
            summary: As ``summarise`` makes it.
            status: ``done``, ``failed`` or ``interrupted``.
        """
        assert status in STATUSES[1:], status
        write_text(self.path / "summary.json", dumps(summary, indent=1))
        write_text(self.path / "STATUS", f"{status}\n")

    def _append(self, name: str, records: Iterable[Record]) -> None:
        self._write(name, "".join(self._line(name, record) + "\n" for record in records))

    def _line(self, name: str, record: Record) -> str:
        try:
            return strict_json(record)
        except (TypeError, ValueError):  # NumPy's types; NaN and infinities
            self._note_not_finite(name, record)
            return dumps(record)

    def _write(self, name: str, text: str) -> None:
        path = self.path / name
        with writing(path), path.open("ab") as file:
            file.write(text.encode(errors="backslashreplace"))

    def _note_not_finite(self, name: str, record: Record) -> None:
        for key, value in record.items():
            if finite(value) is None and value is not None and key not in self._noted:
                self._noted.add(key)
                who = f" of client {record['client']}" if "client" in record else ""
                self.event(
                    "WARNING",
                    f"{name}: '{key}'{who} is {value} in round {record.get('round')}; "
                    "written as null here and from now on",
                )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn errors of the operating system into an ``OutputError`` that names ``path``."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot be written: {error.strerror or error}",
            where=str(error.filename or path),
            hint="Check permissions and free space, or write elsewhere with --out DIR",
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing: a temporary name beside it, then a rename.

    Raises:
        OutputError: The file cannot be written; a file that was there is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path):
            temporary.write_text(text, encoding="utf-8", newline="\n")
            temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def _new_folder(root: Path, name: str, stem: str) -> Path:
    parent = root / (re.sub(r"[^\w.-]+", "_", name)[:100].strip(".") or "run")
    parent.mkdir(parents=True, exist_ok=True)
    names = itertools.chain([stem], (f"{stem}-{n}" for n in itertools.count(2)))
    while True:
        path = parent / next(names)
        with suppress(FileExistsError):
            path.mkdir()
            return path


@dataclass(frozen=True)
class Run:
    """Read-only view of a run folder as it was when opened; open again to see later rounds.

    Attributes:
        path: The folder.
        status: ``running | done | failed | interrupted``, or ``unknown`` without a STATUS file.
        scenario: Content of resolved.yaml; what it leaves out has its default.
        rounds: Records of rounds.jsonl.
        summary: Content of summary.json, None before the end.
        env: Content of env.json.
        events: Lines of events.log.
        problems: What is wrong with the folder, in words; empty for a sound one.
    """

    path: Path
    status: str
    scenario: Record
    rounds: list[Record]
    summary: Record | None
    env: Record
    events: list[str]
    problems: list[str]

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Read a run folder; missing and torn files are noted in ``problems``.

        Raises:
            OutputError: There is no such folder, or it is not a run folder.
        """
        folder = Path(path)
        if not is_run_folder(folder):
            raise OutputError(
                "is no run folder, nor above one"
                if folder.exists()
                else "there is no such run folder",
                where=str(path),
                allowed=f"A run folder has {', '.join(MARKERS)}",
                hint="Give a folder that fedsim run made, its parent, or a quoted glob",
            )
        problems: list[str] = []
        status = (read_text(folder / "STATUS", problems) or "unknown").strip()
        finished = status != "running"
        run = cls(
            path=folder,
            status=status,
            scenario=read_yaml(folder / "resolved.yaml", problems),
            rounds=read_rounds(folder / "rounds.jsonl", problems),
            summary=shapes.summary(
                read_json(folder / "summary.json", problems, expected=finished), problems
            ),
            env=shapes.env(read_json(folder / "env.json", problems) or {}, problems),
            events=(read_text(folder / "events.log", problems) or "").splitlines(),
            problems=problems,
        )
        run._check_schema()
        return run

    def _check_schema(self) -> None:
        version = {**self.env, **(self.summary or {})}.get("schema_version", SCHEMA_VERSION)
        if version != SCHEMA_VERSION:
            self.problems.append(
                f"written with schema version {version}, this fedsim knows {SCHEMA_VERSION}; "
                "some values may be missing here"
            )

    @property
    def clients(self) -> Iterator[Record]:
        """Records of clients.jsonl, read from disk at each use."""
        return read_lines(self.path / "clients.jsonl", self.problems)

    @property
    def steps(self) -> Iterator[Record]:
        """Records of steps.jsonl, read from disk at each use; none unless the scenario asked."""
        there = (self.path / STEPS).is_file()
        return read_lines(self.path / STEPS, self.problems) if there else iter(())

    @property
    def name(self) -> str:
        """The scenario's name."""
        return str(self._identity["name"])

    @property
    def seed(self) -> int:
        """The seed of this run."""
        return int(self._identity["seed"])

    @property
    def started(self) -> str:
        """UTC time in ISO format, to sort by."""
        stamp = re.match(r"(\d{4})(\d\d)(\d\d)-(\d\d)(\d\d)(\d\d)", self.path.resolve().name)
        named = "{}-{}-{}T{}:{}:{}".format(*stamp.groups()) if stamp else ""
        return str(self.env.get("started", named))

    @cached_property
    def key_metric(self) -> tuple[str, str]:
        """Key of the metric that the run is judged by, and its better direction.

        Where the folder does not say: the first ``eval/`` key that is not the loss; lower is
        better for losses and perplexities.
        """
        if self.summary and "key_metric" in self.summary:
            return self.summary["key_metric"]["name"], self.summary["key_metric"]["mode"]
        if self.env.get("run", {}).get("key_metric"):
            name, mode = self.env["run"]["key_metric"]
            return name, mode
        keys = [k for r in self.rounds for k in r if k.startswith("eval/")]
        name = next((k for k in keys if k != "eval/loss"), "eval/loss")
        return name, "min" if name.endswith(("loss", "perplexity")) else "max"

    @cached_property
    def overview(self) -> Record:
        """The summary; while there is none, the same made from the rounds so far."""
        return self.summary or summarise(self._identity, self.rounds, key_metric=self.key_metric)

    @cached_property
    def _identity(self) -> Record:
        known = {"name": self.path.resolve().parent.name, "strategy": "?", "codec": "?", "seed": 0}
        for source in (self.env.get("run", {}), self.summary or {}):
            known.update({key: source[key] for key in known if key in source})
        return known

    def column(self, key: str) -> tuple[list[int], list[float]]:
        """Rounds that have ``key``, and its values; null is NaN."""
        rounds, values = self.columns.get(key, ([], []))
        return list(rounds), [math.nan if v is None else v for v in values]

    @cached_property
    def columns(self) -> dict[str, tuple[list[int], list[Any]]]:
        """Of each key of rounds.jsonl: the rounds that have it, and its values as written."""
        return by_key(self.rounds)


def is_run_folder(path: Path) -> bool:
    """Whether ``path`` is a folder with at least one of a run's files."""
    return path.is_dir() and any((path / marker).is_file() for marker in MARKERS)


def find_runs(paths: Iterable[str | Path]) -> list[Run]:
    """Open all runs that are meant, without repeats, sorted by start time.

    Args:
        paths: Each a run folder, a folder above run folders, or a glob such as ``runs/topk*``.

    Raises:
        OutputError: A path leads to no run at all.
    """
    folders: dict[Path, None] = {}
    for path in paths:
        matches = [path] if Path(path).exists() else sorted(glob.glob(str(path), recursive=True))
        found = [folder for match in matches for folder in _run_folders(Path(match))]
        if not found:
            Run.open(path)  # says what is wrong with it
        folders.update(dict.fromkeys(folder.resolve() for folder in found))
    return sorted(map(Run.open, folders), key=lambda run: (run.started, run.path))


def _run_folders(path: Path) -> list[Path]:
    if is_run_folder(path):
        return [path]
    return sorted({file.parent for marker in MARKERS for file in path.rglob(marker)})
