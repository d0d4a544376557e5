"""What clients missed is sent to them until they have answered."""

from types import SimpleNamespace

import numpy as np
import pytest

from fedsim import registry, simulation
from fedsim.catchup import CatchUp
from fedsim.checkpoint import Checkpoints
from tests.problems import tiny

SEEDS = (
    {"name": "kseed", "local_steps": 1, "batch_size": 8},
    {"name": "fedkseed", "num_seeds": 512, "synchronise": "missing"},
)
PROJECTIONS = (
    {"name": "ferret", "local_steps": 1, "batch_size": 8},
    {"name": "ferret", "num_bases": 2},
)
BOTH = pytest.mark.parametrize(("client", "strategy"), [SEEDS, PROJECTIONS])


def answer(node: int, fails: bool = False) -> SimpleNamespace:
    return SimpleNamespace(metadata=SimpleNamespace(src_node_id=node), has_error=lambda: fails)


def test_who_fails_knows_no_more_than_before():
    state = {"seen": {1: 2, 2: 2}}
    knowledge = CatchUp(state)
    assert knowledge.since([1, 2, 3], 4) == {1: 2, 2: 2, 3: 0}
    replies = [answer(1), answer(2, fails=True), answer(3, fails=True)]
    assert list(knowledge.answered(replies)) == replies
    assert state["seen"] == {1: 4, 2: 2, 3: 0}


@BOTH
def test_a_client_that_vanishes_during_its_download_is_sent_the_same_again(
    tmp_path, client, strategy
):
    devices = {"mix": [{"profile": "jetson-tx2", "share": 1}], "dropout": 0.6}
    model = {"name": "tests.problems:perceptron", "options": {"hidden": 400}}
    cohort = {"num_rounds": 10, "clients_per_round": 3, "seed": 5, "checkpoint": {"every": 1}}
    run = simulation.run(
        tiny(client=client, strategy=strategy, model=model, devices=devices, **cohort),
        out=tmp_path,
    )
    rows = list(run.clients)
    known, updates = dict.fromkeys((row["client"] for row in rows), 0), 0
    for number in range(1, 11):
        answered = [r["client"] for r in rows if r["round"] == number and r["status"] == "ok"]
        known |= dict.fromkeys(answered, updates)
        updates += bool(answered)
    assert "download" in {row.get("stopped_in") for row in rows}
    assert Checkpoints(run.path, 2).latest().strategy["state"]["seen"] == known


@BOTH
def test_a_client_that_fails_to_evaluate_knows_nothing_of_it(client, strategy):
    built = registry.build("strategies", strategy)
    built.initial = lambda: {"w": np.zeros((20, 30), np.float32)}
    built._weights = built.initial()
    built.state["updates"] = 3
    built.broadcasts(4, [0, 1])
    refused = [answer(n, fails=True) for n in (0, 1)]
    assert built.aggregate_evaluate(4, refused) is None
    assert built.state["seen"] == {0: 0, 1: 0}
