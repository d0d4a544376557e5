"""TensorBoard: event files, by default in the run folder.

``tensorboard --logdir runs`` shows all runs at once. https://www.tensorflow.org/tensorboard
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedsim.results import Run
from fedsim.tracking import Tracker, label


@dataclass(kw_only=True)
class TensorBoard(Tracker):
    """Scalars by key and round, the scenario as text. A resumed run replaces its later rounds.

    Args:
        folder: Parent of all runs' event files; empty for ``tensorboard/`` in the run folder.
    """

    is_plugin = True
    needs = ("tensorboard",)
    extra = "tensorboard"

    folder: str = ""

    def start(self, run: Run, after: int) -> None:
        """Open an event file that hides what older ones say of the rounds to come."""
        from torch.utils.tensorboard import SummaryWriter

        place = Path(self.folder) / label(run) if self.folder else run.path / "tensorboard"
        self.writer = SummaryWriter(str(place), purge_step=after + 1)
        scenario = (run.path / "resolved.yaml").read_text(encoding="utf-8")
        indented = "".join(f"    {line}\n" for line in scenario.splitlines())  # Markdown: as it is
        self.writer.add_text("scenario", indented, global_step=after + 1)

    def log(self, server_round: int, values: Mapping[str, float]) -> None:
        """One scalar a key, on disk at once."""
        for key, value in values.items():
            self.writer.add_scalar(key, value, global_step=server_round)
        self.writer.flush()

    def finish(self, run: Run) -> None:
        """Close the file."""
        self.writer.close()
