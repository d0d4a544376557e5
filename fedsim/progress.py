"""What a person or a machine sees while a run goes on."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fedsim.records import dumps
from fedsim.units import human_bytes

Record = Mapping[str, Any]


class Reporter:
    """Says nothing; the base of the other reporters."""

    def begin(self, folder: Path) -> None:
        """The run folder exists."""

    def start(self, title: str, num_rounds: int) -> None:
        """The run begins."""

    def round_begins(self, server_round: int, num_clients: int) -> None:
        """A round was sent to ``num_clients`` clients."""

    def clients_done(self, count: int) -> None:
        """So many more clients have answered."""

    def round_done(self, record: Record) -> None:
        """A round's record was written."""

    def message(self, text: str) -> None:
        """A sentence for the person at the terminal."""

    def stop(self) -> None:
        """The run ended, well or not."""


class Lines(Reporter):
    """One line a round, for logs and pipes."""

    def start(self, title: str, num_rounds: int) -> None:
        """The run begins."""
        self.num_rounds = num_rounds
        self.message(title)

    def round_done(self, record: Record) -> None:
        """A round was written."""
        self.message(f"round {record['round']}/{self.num_rounds}  {headline(record)}")

    def message(self, text: str) -> None:
        """A sentence for the terminal."""
        print(text, flush=True)


class JsonLines(Reporter):
    """Each round's record, with the run's seed, as one JSON object a line on standard output."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def round_done(self, record: Record) -> None:
        """A round was written."""
        print(dumps({"seed": self.seed, **record}), flush=True)

    def message(self, text: str) -> None:
        """A sentence for the terminal."""
        print(text, file=sys.stderr, flush=True)


class Bars(Reporter):
    """Progress bars for rounds and for the clients of a round, on a terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn("{task.description:<8}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
        )

    def start(self, title: str, num_rounds: int) -> None:
        """The run begins."""
        self.console.print(title, highlight=False, markup=False)
        self.rounds = self.progress.add_task("rounds", total=num_rounds, note="starting workers")
        self.clients = self.progress.add_task("clients", total=None, visible=False, note="")
        self.progress.start()

    def round_begins(self, server_round: int, num_clients: int) -> None:
        """A round was sent out."""
        self.progress.reset(self.clients, total=num_clients, visible=True)

    def clients_done(self, count: int) -> None:
        """Some clients answered."""
        self.progress.advance(self.clients, count)

    def round_done(self, record: Record) -> None:
        """A round was written."""
        note = headline(record)
        self.progress.update(self.rounds, completed=int(record["round"]), note=note)

    def message(self, text: str) -> None:
        """A sentence for the terminal."""
        self.progress.console.print(text, highlight=False, markup=False)

    def stop(self) -> None:
        """The run ended."""
        self.progress.stop()


def headline(record: Record) -> str:
    """The numbers of a round that a person wants to see.

    >>> headline({"round": 1, "eval/accuracy": 0.5, "comm/up_bytes": 1200})
    'accuracy 0.500  up 1.2 kB'
    """
    scores = [
        f"{key.removeprefix('eval/')} {value:.3f}"
        for key, value in record.items()
        if key.startswith(("eval/", "personal/")) and isinstance(value, float)
    ]
    if "train/loss" in record:
        scores.append(f"train loss {record['train/loss']:.3f}")
    if record.get("comm/up_bytes"):
        scores.append(f"up {human_bytes(record['comm/up_bytes'])}")
    if record.get("clients/failed"):
        scores.append(f"failed {record['clients/failed']}")
    return "  ".join(scores)
