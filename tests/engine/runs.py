"""What the tests of the engine share: runs to compare, and how they are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedsim import simulation
from fedsim.checkpoint import Checkpoints
from fedsim.data import partition
from fedsim.engine.worker import Recipe
from fedsim.progress import Reporter
from fedsim.results import Run
from fedsim.scenario import Scenario
from tests.problems import tiny

STOCK = "flwr.serverapp.strategy:"
MISBEHAVE = "tests.engine.clients_that_misbehave:"
TIMES = ("time/wall_s", "mem/peak_bytes")


def recipe(scenario: Scenario) -> Recipe:
    """What a worker of this scenario builds."""
    split = partition.make(scenario, scenario.seed)
    return Recipe(scenario, split.ownership, scenario.seed)


def comparable(run: Run, leave: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """The rounds of a run without what no two runs share."""
    return [{k: v for k, v in r.items() if k not in (*TIMES, *leave)} for r in run.rounds]


def outcome(run: Run) -> dict[str, Any]:
    """All that must not depend on workers, deaths or interruptions: weights, rounds, totals."""
    totals = {k: v for k, v in run.rounds[-1].items() if k.endswith("_cum")}
    assert run.summary is not None
    return {
        "weights": run.summary["weights_sha256"],
        "rounds": comparable(run, leave=("clients/retried",)),
        "totals": totals,
        "clients": [{**row, "time/wall_s": 0} for row in run.clients],
        "steps": list(run.steps),
    }


def six_rounds(**changes: Any) -> Scenario:
    """Six rounds of three clients that keep a state, with a checkpoint after each."""
    client = {"name": MISBEHAVE + "Counting"}
    settings = {"num_rounds": 6, "clients_per_round": 3, "client": client}
    return tiny(**{**settings, "checkpoint": {"every": 1}, **changes})


class StopAt(Reporter):
    """Ends the process's work in the given round, before its checkpoint is written."""

    def __init__(self, server_round: int) -> None:
        self.server_round = server_round

    def round_done(self, record: dict[str, Any]) -> None:
        if record["round"] == self.server_round:
            raise KeyboardInterrupt


def stopped(scenario: Scenario, out: Path, server_round: int) -> Path:
    """The folder of a run that was stopped in a round, before its checkpoint."""
    with pytest.raises(KeyboardInterrupt):
        simulation.run(scenario, out=out, reporter=StopAt(server_round))
    return max(out.glob("tiny/*"))


def stopping_after(server_round: int) -> type[Checkpoints]:
    """Checkpoints that end the run when that of a round has been written."""

    class Stopping(Checkpoints):
        def save(self, saved_round: int, *rest: Any) -> None:
            super().save(saved_round, *rest)
            if saved_round == server_round:
                raise KeyboardInterrupt

    return Stopping
