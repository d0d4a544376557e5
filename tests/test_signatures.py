"""Signature experiments of FedKSeed and Ferret on one synthetic task: orderings, no last digits."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest

from fedsim import simulation
from fedsim.results import Run
from tests.problems import tiny

pytestmark = pytest.mark.slow

PLAN = {
    "seed": 0,
    "num_rounds": 20,
    "num_clients": 20,
    "clients_per_round": 5,
    "model": {"name": "tests.problems:small_network"},
    "data": {
        "path": "tests.problems:mixture",
        "partitioner": {
            "name": "dirichlet", "alpha": 0.5, "partition_by": "label", "min_partition_size": 12,
        },
    },
    "evaluate": {"every": 20, "batch_size": 2000},
    "checkpoint": {"every": 1000},
}  # fmt: skip


@cache
def accuracy(method: str, size: int = 0, rate: float = 1.0) -> float:
    return result(method, size, rate).summary["key_metric"]["final"]


@cache
def result(method: str, size: int, rate: float) -> Run:
    plans = {
        "fedavg": (
            {"name": "sgd", "learning_rate": 0.1, "local_steps": 10, "batch_size": 16},
            {"name": "fedavg"},
        ),
        "fedkseed": (
            {"name": "kseed", "local_steps": 50, "batch_size": 16, "eps": 5e-4},
            {"name": "fedkseed", "num_seeds": size or 1, "learning_rate": 0.003 * rate},
        ),
        "ferret": (
            {"name": "ferret", "learning_rate": 0.3, "local_steps": 10, "batch_size": 16},
            {"name": "ferret", "num_bases": size or 1, "server_learning_rate": rate,
             "scale": "code", "bases": "client"},
        ),
    }  # fmt: skip
    client, strategy = plans[method]
    return simulation.run(tiny(**PLAN, client=client, strategy=strategy), out=Path(mkdtemp()))


def test_more_seeds_learn_more_and_too_few_stall():
    """Specification, 20 rounds: 0.29, 0.53, 0.63 for K = 16, 128, 1024; FedAvg 0.87."""
    found = [accuracy("fedkseed", k) for k in (16, 128, 1024)]
    print("fedkseed, K = 16, 128, 1024:", found, "fedavg:", accuracy("fedavg"))
    assert found == sorted(found)
    assert found[0] < 0.45
    assert 0.5 < found[2] < accuracy("fedavg")
    assert accuracy("fedavg") > 0.84


def test_a_step_ten_times_too_large_destroys_the_run():
    assert accuracy("fedkseed", 128, 10.0) < accuracy("fedkseed", 128) - 0.1


def test_ferret_stands_between_fedkseed_and_fedavg():
    """Specification, 20 rounds, scale of the code: 0.759, 0.851, 0.862 for K = 16, 64, 256."""
    found = [accuracy("ferret", k) for k in (16, 64, 256)]
    print("ferret, K = 16, 64, 256:", found)
    assert found == sorted(found)
    assert accuracy("fedkseed", 1024) < found[0]
    assert found[2] > 0.83
    assert accuracy("ferret", 16, 3.0) < found[0]


def test_numbers_that_travel():
    """Specification: about 31, 122 and 491 numbers for K = 16, 64, 256; FedAvg 1386."""
    full = next(result("fedavg", 0, 1.0).clients)["up_bytes"]
    assert full == 20 + 4 * 1386
    for size, numbers in ((16, 31), (64, 122), (256, 491)):
        rows = list(result("ferret", size, 1.0).clients)
        mean = sum(row["up_bytes"] for row in rows) / len(rows) / 4
        assert mean == pytest.approx(numbers, rel=0.35, abs=20)
