"""Runs in a notebook: ``from fedsim import load_runs; load_runs("runs/*").plot("score")``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from fedsim import tables
from fedsim.errors import OutputError, did_you_mean
from fedsim.results import Run, find_runs

if TYPE_CHECKING:
    from pandas import DataFrame
    from plotly.graph_objects import Figure


class Runs(Sequence[Run]):
    """Some run folders, as they were when loaded."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = list(runs)

    def __len__(self) -> int:
        return len(self._runs)

    @overload
    def __getitem__(self, index: int) -> Run: ...
    @overload
    def __getitem__(self, index: slice) -> Runs: ...
    def __getitem__(self, index: int | slice) -> Run | Runs:
        """A run, or some of them."""
        return Runs(self._runs[index]) if isinstance(index, slice) else self._runs[index]

    def __repr__(self) -> str:
        names = ", ".join(dict.fromkeys(run.name for run in self))
        return f"<{len(self)} run{'s' * (len(self) != 1)}: {names}>"

    def _repr_html_(self) -> str:
        shown = ["name", "strategy", "codec", "seed", "status", "rounds", "metric", "final", "best"]
        return str(self.summary()[shown].to_html(index=False))

    def frame(self) -> DataFrame:
        """One row per run and round, with the keys of rounds.jsonl."""
        return tables.rounds(self)

    def clients(self) -> DataFrame:
        """One row per run, round and client, with the keys of clients.jsonl."""
        return tables.clients(self)

    def steps(self) -> DataFrame:
        """One row per run and local step, with the keys of steps.jsonl; see ``log_steps``."""
        return tables.steps(self)

    def summary(self) -> DataFrame:
        """One row per run: scores, totals, status."""
        return tables.summaries(self)

    def plot(self, panel: str, **options: Any) -> Figure:
        """Draw a panel of the report.

        Args:
            panel: Its file name in ``dashboards/``, such as ``score``; an entry point's name.
            **options: What this panel's ``draw`` can be told besides the runs.

        Raises:
            OutputError: There is no such panel, or no such option of it.
            NothingToShow: These runs have not measured what it shows.
        """
        from fedsim.dashboards import options as panels

        known = panels.by_name()
        if panel not in known:
            raise OutputError(
                f"there is no panel '{panel}'",
                hint=did_you_mean(panel, known),
                allowed=f"Panels: {', '.join(known)}",
            )
        taken = panels.options(known[panel])
        for option in options:
            if option not in taken:
                raise OutputError(
                    f"unknown option '{option}' of panel '{panel}'",
                    hint=did_you_mean(option, taken),
                    allowed=f"Options: {', '.join(taken) or 'none'}",
                )
        return known[panel].draw(self, **options)


def load_runs(*paths: str | Path) -> Runs:
    """Open runs for a notebook.

    Args:
        *paths: Each a run folder, a folder above some, or a pattern such as ``runs/topk*``.

    Raises:
        OutputError: A path leads to no run.
    """
    return Runs(find_runs(paths))
