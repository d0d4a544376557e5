"""Make tiny run folders for tests: numbers that a person can check, no training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedsim.records import Record, identity, summarise
from fedsim.results import Run, RunFolder
from fedsim.scenario import Scenario


def scenario(**values: Any) -> Scenario:
    """A scenario that validates; nothing of it is ever run."""
    return Scenario.model_validate(
        {
            "name": "tiny",
            "num_rounds": 2,
            "task": {"name": "image_classification"},
            "model": {"config": {"model_type": "vit"}},
            "data": {"path": "sklearn:digits"},
            **values,
        }
    )


def round_records(
    scores: Sequence[float], up: int = 1000, down: int = 2000, failed: int = 0, wall_s: float = 1.5
) -> list[Record]:
    """Round 0 and one record per further score; ``failed`` of 4 clients fail each round."""
    records = []
    for n, score in enumerate(scores):
        on = int(n > 0)
        records.append(
            {
                "round": n,
                "eval/accuracy": score,
                "eval/loss": 1.0 - score,
                **({"train/loss": 2.0 / n} if n else {}),
                "comm/up_bytes": on * up,
                "comm/down_bytes": on * down,
                "comm/up_bytes_cum": n * up,
                "comm/down_bytes_cum": n * down,
                "comm/up_values_bytes": on * (up - up // 10),
                "comm/up_header_bytes": on * (up // 10),
                "time/wall_s": on * wall_s,
                **(
                    {"time/virtual_s": 60.0, "energy/joules": 500.0, "clients/late": 1} if n else {}
                ),
                "mem/peak_bytes": 100 + n,
                "clients/selected": on * 4,
                "clients/completed": on * (4 - failed),
                "clients/failed": on * failed,
            }
        )
    return records


def client_rows(round_: int, losses: Sequence[float]) -> list[Record]:
    """One row per loss; client ids count from 0."""
    return [
        {"round": round_, "client": i, "status": "ok", "num_examples": 10 + i, "train_loss": loss}
        for i, loss in enumerate(losses)
    ]


def make_run(
    root: Path,
    scores: Sequence[float] = (0.1, 0.5, 0.4),
    *,
    values: dict[str, Any] | None = None,
    losses: Sequence[float] = (0.5, 1.0, 1.5),
    status: str = "done",
    reason: bool | str = False,
    **costs: Any,
) -> Run:
    """Write a run folder as the engine would, and open it.

    Args:
        root: Parent of all runs.
        scores: ``eval/accuracy`` from round 0.
        values: Scenario keys to set.
        losses: Train loss of each client, in every round.
        status: ``running`` leaves the run without a summary.
        reason: Why the run failed, for the summary.
        **costs: For ``round_records``.
    """
    spec = scenario(**(values or {}))
    folder = RunFolder.create(root, spec, None)
    records = round_records(scores, **costs)
    for record in records:
        folder.add_round(record)
        if record["round"]:
            folder.add_clients(client_rows(record["round"], losses))
    if status != "running":
        key_metric = ("eval/accuracy", "max")
        folder.finish(
            summarise(identity(spec), records, key_metric=key_metric, failed=reason), status
        )
    return Run.open(folder.path)


def make_full_run(root: Path, **values: Any) -> Run:
    """A run with something for every panel: devices, tests of clients, staleness, internals.

    Two clients take 1 s + 2 s + 1 s and twice that, in two rounds of 10 s; the second is late.
    """
    spec = scenario(**values)
    folder = RunFolder.create(root, spec, None, key_metric=("eval/accuracy", "max"))
    for record in round_records((0.1, 0.5, 0.4)):
        n = record["round"]
        own = {"agg/staleness": 1.0, "agg/in_flight": 2, "agg/update_norm": n, "privacy/epsilon": n}
        own["comm/up_values_bytes/<i>net</i>.weight"] = 900
        folder.add_round({**record, "time/virtual_s": 10.0 if n else 0.0, **(own if n else {})})
        if n:
            folder.add_clients([_device_row(n, client) for client in (0, 1)])
            folder.add_clients([_tested_row(n, client) for client in (0, 1)])
            folder.add_steps([_step(n, client, step) for client in (0, 1) for step in (1, 2)])
    return Run.open(folder.path)


def _step(round_: int, client: int, step: int) -> Record:
    """Of client 1, the second step is dropped."""
    found = {"loss_plus": 1.5 / step, "loss_minus": 0.5 / step}
    scalar = None if client and step == 2 else -10.0 * round_ * step
    place = {"round": round_, "client": client, "step": step}
    return {**place, "direction_seed": 2**61 + step, "scalar": scalar, **found}


def _device_row(round_: int, client: int) -> Record:
    times = dict(zip(("download", "compute", "upload"), (1.0, 2.0, 1.0), strict=True))
    slow = 1 + client
    return {
        "round": round_,
        "stage": "train",
        "client": client,
        "status": "late" if client else "ok",
        "num_examples": 10,
        "train_loss": 0.5 + client,
        "device": f"phone-{client}",
        "time/virtual_s": 4.0 * slow,
        "time/end_s": 10.0 * (round_ - 1) + 4.0 * slow,
        **{f"time/{phase}_s": slow * seconds for phase, seconds in times.items()},
    }


def _tested_row(round_: int, client: int) -> Record:
    return {"round": round_, "stage": "evaluate", "client": client, "accuracy": 0.4 + 0.2 * client}
