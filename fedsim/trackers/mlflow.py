"""MLflow: by default a SQLite file beside all runs; ``mlflow ui`` shows it.

https://mlflow.org/docs/latest/ml/tracking
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedsim.differences import flatten, tags
from fedsim.results import Run
from fedsim.tracking import Tracker, label

STATUSES = {"done": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
MAX_VALUE = 500
"""Characters of a parameter's value that every MLflow server takes."""
TAG = "fedsim.run"


@dataclass(kw_only=True)
class MLflow(Tracker):
    """Metrics by key and step, the scenario's options as parameters, one experiment a scenario.

    The tag ``fedsim.run`` holds the folder's name: a run that is resumed, or exported again, goes
    on in the same MLflow run, and no round is there twice.

    Args:
        experiment: Where the run is listed; empty for the scenario's name.
        uri: Of the tracking server; empty for ``MLFLOW_TRACKING_URI``, or else a file.
        folder: Where that file ``mlflow.db`` lies; empty for the parent of all runs.
    """

    is_plugin = True
    needs = ("mlflow", "sqlalchemy", "alembic")
    extra = "mlflow"

    experiment: str = ""
    uri: str = ""
    folder: str = ""

    def start(self, run: Run, after: int) -> None:
        """Find the run, or create it with its parameters."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient(self._address(run))
        name = self.experiment or run.name
        known = self.client.get_experiment_by_name(name)
        where = known.experiment_id if known else self.client.create_experiment(name)
        folder = run.path.resolve().name
        found = self.client.search_runs([where], f"tags.`{TAG}` = '{folder}'")
        if found:
            self.id = found[0].info.run_id
            self.client.update_run(self.id, status="RUNNING")
        else:
            marks = {TAG: folder, "fedsim.tags": ", ".join(tags(run))}
            self.id = self.client.create_run(where, run_name=label(run), tags=marks).info.run_id
            options = flatten(run.scenario).items()
            params = [Param(key, str(value)[:MAX_VALUE]) for key, value in options]
            self.client.log_batch(self.id, params=params)
        history = self.client.get_metric_history(self.id, "time/wall_s") if found else []
        self.known = max((point.step for point in history), default=-1)

    def _address(self, run: Run) -> str:
        address = self.uri or os.environ.get("MLFLOW_TRACKING_URI", "")
        if address and not self.folder:
            return address
        folder = Path(self.folder) if self.folder else run.path.resolve().parents[1]
        folder.mkdir(parents=True, exist_ok=True)
        return f"sqlite:///{folder.resolve()}/mlflow.db"

    def log(self, server_round: int, values: Mapping[str, float]) -> None:
        """All metrics of a round in one request."""
        from mlflow.entities import Metric

        if server_round > self.known:
            now = int(time.time() * 1000)
            metrics = [Metric(key, value, now, server_round) for key, value in values.items()]
            self.client.log_batch(self.id, metrics=metrics)

    def finish(self, run: Run) -> None:
        """Close the run with its status."""
        self.client.set_terminated(self.id, STATUSES.get(run.status, "RUNNING"))
