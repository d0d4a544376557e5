"""Weights & Biases: by default offline, in the run folder, to be sent with ``wandb sync``.

https://docs.wandb.ai
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedsim.differences import tags
from fedsim.results import Run
from fedsim.tracking import Tracker, label


@dataclass(kw_only=True)
class WandB(Tracker):
    """Keys against ``round``, the scenario as config, the summary's scores and totals.

    The run's id is its folder's name, so a resumed run goes on with the same one; rounds that were
    computed again lie on each other, with equal values.

    Args:
        project: Where the run is listed.
        entity: The user or team; empty for the default one.
        mode: ``offline`` keeps all files here, ``online`` sends them (after ``wandb login``).
        folder: Parent of the folder ``wandb/``; empty for the run folder.
    """

    is_plugin = True
    needs = ("wandb",)
    extra = "wandb"

    project: str = "fedsim"
    entity: str = ""
    mode: Literal["offline", "online"] = "offline"
    folder: str = ""

    def start(self, run: Run, after: int) -> None:
        """Open the run; nothing of the machine, the code or the terminal is collected."""
        import wandb

        if self.mode == "offline":
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        place = Path(self.folder) if self.folder else run.path
        place.mkdir(parents=True, exist_ok=True)
        self.run = wandb.init(
            project=self.project,
            entity=self.entity or None,
            mode=self.mode,
            dir=str(place),
            id=run.path.resolve().name,
            name=label(run),
            group=run.name,
            tags=tags(run),
            config=run.scenario,
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(
                console="off",
                silent=True,
                save_code=False,
                disable_git=True,
                x_disable_stats=True,
                x_disable_meta=True,
            ),
        )
        self.run.define_metric("*", step_metric="round")

    def log(self, server_round: int, values: Mapping[str, float]) -> None:
        """One row of the history."""
        self.run.log({"round": server_round, **values})

    def finish(self, run: Run) -> None:
        """Write the summary and close the run with its exit code."""
        overview = run.overview
        self.run.summary.update(
            {"key_metric": overview["key_metric"], "totals": overview["totals"]}
            | {"status": run.status, "weights_sha256": overview["weights_sha256"]}
        )
        self.run.finish(exit_code=int(overview["exit_code"]))
