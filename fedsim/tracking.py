"""Trackers: a run's rounds in other tools (TensorBoard, Weights & Biases, MLflow, Trackio).

A tracker is told what a run folder holds, under the same keys as in rounds.jsonl: live, when a
scenario says ``track: [tensorboard]``, or afterwards by ``fedsim export``. A tracker only listens:
it changes no result, and the first error of one is a warning that ends it, never the run.
"""

from __future__ import annotations

import logging
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, ClassVar

from fedsim import registry
from fedsim.progress import Reporter
from fedsim.records import Record
from fedsim.results import Run

log = logging.getLogger("fedsim")


class Tracker(ABC):
    """Sends one run to a tool; the contract of the plug-ins in ``fedsim/trackers/``.

    Attributes:
        needs: Modules that must be installed.
        extra: The extra of fedsim that installs them.
    """

    is_plugin: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = ""

    @abstractmethod
    def start(self, run: Run, after: int) -> None:
        """Begin a run, or go on with it.

        Args:
            run: The folder as it is now: names, seed, scenario.
            after: The last round that stays as it was told before; -1 for a new run. A resumed run
                tells its later rounds again, with the same values except wall time.
        """

    @abstractmethod
    def log(self, server_round: int, values: Mapping[str, float]) -> None:
        """One round's numbers, by their keys in rounds.jsonl."""

    @abstractmethod
    def finish(self, run: Run) -> None:
        """The run ended, well or not: its folder has a summary and a status."""


def build(section: Mapping[str, Any]) -> Tracker:
    """The tracker that an entry of ``track:`` names."""
    registry.check_installed(registry.find("trackers", section["name"]))
    tracker = registry.build("trackers", section)
    assert isinstance(tracker, Tracker)
    return tracker


def numbers(record: Record) -> dict[str, float]:
    """What trackers get of a round: finite numbers, by slash-grouped key.

    >>> numbers({"round": 3, "eval/accuracy": 0.5, "eval/loss": None, "agg/names": ["a"]})
    {'eval/accuracy': 0.5}
    """
    return {
        key: float(value)
        for key, value in record.items()
        if "/" in key and isinstance(value, int | float) and math.isfinite(value)
    }


def label(run: Run) -> str:
    """How tools show a run; its folder's name makes it unique."""
    return f"{run.name}-seed{run.seed}-{run.path.resolve().name}"


def export(run: Run, tracker: Tracker) -> None:
    """Tell a tracker a whole run folder."""
    with redirect_stdout(sys.stderr):  # some tools greet
        tracker.start(run, -1)
        for record in run.rounds:
            tracker.log(record["round"], numbers(record))
        tracker.finish(run)


class Feed(Reporter):
    """Tells a tracker a run that goes on; after the first error it is silent."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self.name, self.tracker = name, tracker
        self.told = -1
        self.works = False

    def begin(self, folder: Path) -> None:
        """The run folder exists; rounds in it were told before the run was resumed."""
        run = Run.open(folder)
        self.folder, self.works = folder, True
        self.told = max((record["round"] for record in run.rounds), default=-1)
        self._try("start", run, self.told)

    def round_done(self, record: Mapping[str, Any]) -> None:
        """A round was written."""
        self.told = record["round"]
        self._try("log", record["round"], numbers(dict(record)))

    def stop(self) -> None:
        """The run ended; a round that ended it was written without further notice."""
        if not self.works:
            return
        run = Run.open(self.folder)
        for record in run.rounds:
            if record["round"] > self.told:
                self.round_done(record)
        self._try("finish", run)

    def _try(self, method: str, *arguments: Any) -> None:
        if not self.works:
            return
        try:
            with redirect_stdout(sys.stderr):  # standard output is the user's
                getattr(self.tracker, method)(*arguments)
        except Exception as error:
            self.works = False
            log.warning(
                "tracker '%s' failed and is told no more; `fedsim export %s --to %s` can send the "
                "run when it is over: %s: %s",
                self.name,
                self.folder,
                self.name,
                type(error).__name__,
                error,
            )


class Several(Reporter):
    """Passes everything on to several reporters, in their order."""

    def __init__(self, reporters: Sequence[Reporter]) -> None:
        self.reporters = reporters

    def begin(self, folder: Path) -> None:
        """The run folder exists."""
        for reporter in self.reporters:
            reporter.begin(folder)

    def start(self, title: str, num_rounds: int) -> None:
        """The run begins."""
        for reporter in self.reporters:
            reporter.start(title, num_rounds)

    def round_begins(self, server_round: int, num_clients: int) -> None:
        """A round was sent out."""
        for reporter in self.reporters:
            reporter.round_begins(server_round, num_clients)

    def clients_done(self, count: int) -> None:
        """Some clients answered."""
        for reporter in self.reporters:
            reporter.clients_done(count)

    def round_done(self, record: Mapping[str, Any]) -> None:
        """A round was written."""
        for reporter in self.reporters:
            reporter.round_done(record)

    def message(self, text: str) -> None:
        """A sentence for the terminal."""
        for reporter in self.reporters:
            reporter.message(text)

    def stop(self) -> None:
        """The run ended."""
        for reporter in self.reporters:
            reporter.stop()


def tracked(sections: Sequence[Mapping[str, Any]], reporter: Reporter | None) -> Reporter:
    """A reporter that also feeds the trackers of a scenario.

    Args:
        sections: Entries of ``track:``.
        reporter: Shows progress; silent by default.

    Raises:
        PluginError: A tracker is unknown or not installed, or refuses its options.
    """
    feeds = [Feed(section["name"], build(section)) for section in sections]
    shown = reporter or Reporter()
    return Several([shown, *feeds]) if feeds else shown
