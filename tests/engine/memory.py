"""Memory of the driver, measured in a process of its own.

    python -m tests.engine.memory cohort --clients 1000
    python -m tests.engine.memory states --clients 10000 --budget-mb 1000

``cohort``: one round in which every client of a cohort trains the CNN (1.6 M weights) on one image.
``states``: two rounds in which every client keeps and changes a private state of 1 MB, then the
resumption of the last one. Each prints the driver's largest resident memory and the seconds taken.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from fedsim import simulation
from fedsim.engine.process import peak_bytes
from fedsim.results import Run
from fedsim.scenario import Scenario
from tests.engine.runs import MISBEHAVE, stopping_after
from tests.problems import tiny


def images(rows: int = 1000) -> dict[str, Dataset]:
    """Noise of CIFAR10's size."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (rows, 3 * 32 * 32), dtype=np.uint8)
    data = Dataset.from_dict({"image": list(pixels), "label": np.arange(rows) % 10})
    return {"train": data, "test": data.select(range(10))}


def flat_cnn() -> Any:
    """The CNN of the speed benchmark, for rows of pixels."""
    from torch import nn

    from fedsim.models.cnn import simple_cnn

    return nn.Sequential(nn.Unflatten(1, (3, 32, 32)), simple_cnn())


def cohort(clients: int, out: Path, **engine: Any) -> dict[str, Any]:
    """One round of ``clients`` clients with one image each."""
    scenario = tiny(
        num_clients=clients,
        num_rounds=1,
        task={"name": "module", "feature_columns": ["image"]},
        model={"name": "tests.engine.memory:flat_cnn"},
        data={"path": "tests.engine.memory:images", "options": {"rows": clients}},
        checkpoint={"every": 100},
        engine=engine or {"backend": "ray", "workers": 2},
    )
    run = simulation.run(scenario, out=out)
    return {"completed": run.rounds[1]["clients/completed"]}


def state_scenario(clients: int, budget_mb: float) -> Scenario:
    """Two rounds in which every client changes a state of 1 MB."""
    return tiny(
        num_clients=clients,
        num_rounds=2,
        data={"partitioner": {"name": "lazy_iid", "rows_per_client": 4}},
        client={"name": MISBEHAVE + "Hoarding"},
        checkpoint={"every": 1},
        engine={"backend": "inline", "client_state_mb": budget_mb},
    )


def states(clients: int, out: Path, budget_mb: float) -> dict[str, Any]:
    """A run that ends after round 1, and its resumption."""
    original = simulation.Checkpoints
    simulation.Checkpoints = stopping_after(1)  # type: ignore[misc]
    try:
        simulation.run(state_scenario(clients, budget_mb), out=out)
    except KeyboardInterrupt:
        pass
    finally:
        simulation.Checkpoints = original  # type: ignore[misc]
    first = peak_bytes()
    run: Run = simulation.resume(max(out.glob("tiny/*")))
    seen = [row["seen"] for row in run.clients if row["round"] == 2]
    disk = sum(f.stat().st_size for f in Path(run.path).rglob("*.safetensors"))
    return {"first_bytes": first, "disk_bytes": disk, "all_seen_twice": set(seen) == {2.0}}


def main() -> None:
    """Measure one of the two."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["cohort", "states"])
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--budget-mb", type=float, default=100.0)
    options = parser.parse_args()
    out = Path(tempfile.mkdtemp(prefix="fedsim-memory-"))
    start, before = time.monotonic(), peak_bytes()
    try:
        if options.what == "cohort":
            facts = cohort(options.clients, out)
        else:
            facts = states(options.clients, out, options.budget_mb)
    finally:
        shutil.rmtree(out)
    facts |= {"before_bytes": before, "peak_bytes": peak_bytes()}
    print(json.dumps({**facts, "seconds": round(time.monotonic() - start, 1)}))


if __name__ == "__main__":
    main()
