"""Trackio: Hugging Face's local tracker with the words of wandb; ``trackio show`` opens it.

https://huggingface.co/docs/trackio. Written for 0.43; it needs an environment without
constraints.txt, whose pillow is newer than Trackio takes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from fedsim.results import Run
from fedsim.tracking import Tracker, label


@dataclass(kw_only=True)
class Trackio(Tracker):
    """Keys by step, the scenario as config; nothing is sent, unless ``space_id`` says where.

    A resumed run goes on with the same one; rounds that were computed again are there twice, with
    equal values.

    Args:
        project: Where the run is listed; empty for the scenario's name.
        space_id: A Hugging Face Space to log to, instead of this machine.
        folder: Where the databases lie; empty for Trackio's own place (``TRACKIO_DIR``).
    """

    is_plugin = True
    needs = ("trackio",)
    extra = "trackio"

    project: str = ""
    space_id: str = ""
    folder: str = ""

    def start(self, run: Run, after: int) -> None:
        """Open the run."""
        if self.folder:
            os.environ["TRACKIO_DIR"] = self.folder  # read when trackio is imported
        import trackio

        self.run = trackio.init(
            project=self.project or run.name,
            name=label(run),
            group=run.name,
            space_id=self.space_id or None,
            config=run.scenario,
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, server_round: int, values: Mapping[str, float]) -> None:
        """One row of the history."""
        self.run.log(dict(values), step=server_round)

    def finish(self, run: Run) -> None:
        """Close the run; Trackio waits until all is written."""
        self.run.finish()
