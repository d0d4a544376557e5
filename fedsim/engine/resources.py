"""How many workers there are, and which part of a machine each of them gets."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

from fedsim.errors import RunError
from fedsim.scenario import EngineSection


def num_workers(engine: EngineSection) -> int:
    """The workers asked for; ``auto`` fills this machine's CPUs."""
    if engine.workers != "auto":
        return engine.workers
    return max(1, int((os.cpu_count() or 1) / engine.cpus_per_worker))


def of_worker(engine: EngineSection) -> dict[str, float]:
    """What Ray reserves for one worker; it may be a fraction.

    >>> of_worker(EngineSection(cpus_per_worker=0.5))
    {'num_cpus': 0.5, 'num_gpus': 0.0}
    """
    return {"num_cpus": engine.cpus_per_worker, "num_gpus": engine.gpus_per_worker}


def of_local_ray(engine: EngineSection, workers: int) -> dict[str, Any]:
    """What a Ray of our own offers: CPUs for all workers, whatever there really is; GPUs as found.

    >>> of_local_ray(EngineSection(cpus_per_worker=0.5), 3)
    {'num_cpus': 2}
    """
    return {"num_cpus": math.ceil(workers * engine.cpus_per_worker)}


def check(engine: EngineSection, workers: int, cluster: Mapping[str, float]) -> None:
    """Refuse what would wait for ever.

    Args:
        engine: What each worker needs.
        workers: How many there are to be.
        cluster: What Ray has, by its names ``CPU`` and ``GPU``.

    Raises:
        RunError: The cluster has less than the workers need.
    """
    needs = {"CPU": engine.cpus_per_worker, "GPU": engine.gpus_per_worker}
    for kind, each in needs.items():
        have = cluster.get(kind, 0.0)
        if workers * each > have + 1e-6:
            raise RunError(
                f"{workers} workers with {each:g} {kind}s each need {workers * each:g}; "
                f"the cluster has {have:g}",
                hint=f"Set engine.workers, or a smaller engine.{kind.lower()}s_per_worker",
            )
