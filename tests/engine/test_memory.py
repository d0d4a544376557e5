"""Memory: flat over rounds, independent of the cohort, and within the budget for states."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from fedsim import simulation
from fedsim.progress import Reporter
from tests.engine.runs import STOCK
from tests.problems import tiny

pytestmark = pytest.mark.slow
GB, MB = 10**9, 10**6


class Watching(Reporter):
    """Notes this process's own memory after each round."""

    def __init__(self) -> None:
        self.process = psutil.Process()
        self.bytes: list[int] = []

    def round_done(self, record):
        self.bytes.append(self.process.memory_full_info().uss)


@pytest.mark.parametrize("engine", ["inline", "ray"])
def test_memory_is_flat_over_five_hundred_rounds(tmp_path, engine):
    watching = Watching()
    scenario = tiny(
        num_rounds=500,
        num_clients=24,
        clients_per_round=6,
        strategy={"name": "fedadam" if engine == "ray" else STOCK + "FedMedian"},
        evaluate={"every": 100},
        checkpoint={"every": 100},
        engine={"backend": engine, "workers": 1},
    )
    simulation.run(scenario, out=tmp_path, reporter=watching)
    later = np.array(watching.bytes[100:])
    slope = np.polyfit(np.arange(len(later)), later, 1)[0]
    assert slope * 400 < 6 * MB, f"{slope * 400 / MB:.1f} MB in 400 rounds"


def measure(*arguments):
    """What tests.engine.memory prints, from a process of its own."""
    command = [sys.executable, "-m", "tests.engine.memory", *arguments]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_thousand_cnn_clients_fit_into_two_gigabytes():
    facts = measure("cohort", "--clients", "1000")
    assert facts["completed"] == 1000
    assert facts["peak_bytes"] < 2 * GB


def test_states_beyond_their_budget_lie_on_disk_and_are_resumed():
    facts = measure("states", "--clients", "1000", "--budget-mb", "100")
    assert facts["all_seen_twice"]
    assert facts["disk_bytes"] >= 2 * GB, "two checkpoints are kept"
    assert facts["peak_bytes"] - facts["before_bytes"] < 500 * MB
