"""Rounds: parity with Flower, its strategies unchanged, exact bytes, faults, states, blocks."""

import pickle
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord
from flwr.serverapp import strategy as flower

from fedsim import assembly, simulation
from fedsim.arrays import sha256
from fedsim.engine.blocks import BLOCKS_PER_ROUND, cut
from fedsim.engine.inline import InlineGrid
from fedsim.errors import PluginError
from fedsim.progress import Reporter
from fedsim.results import Run
from fedsim.strategy import to_arrays, to_record
from tests.engine.clients_that_misbehave import CapturingCodec
from tests.engine.runs import MISBEHAVE, STOCK, recipe
from tests.problems import tiny

ROOT = Path(__file__).parents[2]
UNUSED = ("flwr", "peft", "ray", "sympy", "transformers")


def test_equal_seeds_equal_bits_and_other_seeds_other_bits(tmp_path):
    digests = [
        simulation.run(tiny(seed=seed), out=tmp_path).summary["weights_sha256"]
        for seed in (3, 3, 4)
    ]
    assert digests[0] == digests[1] != digests[2]


def test_the_callers_random_numbers_do_not_matter(tmp_path):
    digests = []
    for seed in (0, 1):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        changes = {"strategy": {"name": STOCK + "FedAvg"}, "clients_per_round": 3}
        run = simulation.run(tiny(**changes), out=tmp_path)
        digests.append(run.summary["weights_sha256"])
    assert digests[0] == digests[1]


@pytest.mark.parametrize("name", ["fedavg", "fedadam", STOCK + "FedAvg", STOCK + "FedMedian"])
def test_our_round_loop_equals_strategy_start(tmp_path, name):
    scenario = tiny(strategy={"name": name}, num_rounds=3)
    ours = simulation.run(scenario, out=tmp_path).summary["weights_sha256"]
    with InlineGrid(recipe(scenario)) as grid:
        strategy = assembly.build_strategy(scenario, grid.num_clients)
        assembly.connect(grid, strategy)
        result = strategy.start(
            grid, to_record(grid.facts["arrays"]), num_rounds=3, train_config=ConfigRecord()
        )
    assert sha256(to_arrays(result.arrays)) == ours


STOCK_OPTIONS = {
    "FedAvg": {},
    "FedAvgM": {"server_momentum": 0.5},
    "FedAdam": {},
    "FedAdagrad": {},
    "FedYogi": {},
    "FedMedian": {},
    "FedTrimmedAvg": {"beta": 0.2},
    "FedProx": {"proximal_mu": 0.1},
    "QFedAvg": {"client_learning_rate": 0.1},
    "Krum": {"num_malicious_nodes": 1},
    "MultiKrum": {"num_malicious_nodes": 1, "num_nodes_to_select": 3},
    "Bulyan": {"num_malicious_nodes": 0},
}
WRAPPERS = {
    "DifferentialPrivacyServerSideFixedClipping": {"clipping_norm": 1.0},
    "DifferentialPrivacyServerSideAdaptiveClipping": {},
    "DifferentialPrivacyClientSideFixedClipping": {"clipping_norm": 1.0},
    "DifferentialPrivacyClientSideAdaptiveClipping": {},
}
MODS = {
    "DifferentialPrivacyClientSideFixedClipping": ["flwr.clientapp.mod:fixedclipping_mod"],
    "DifferentialPrivacyClientSideAdaptiveClipping": ["flwr.clientapp.mod:adaptiveclipping_mod"],
}
CLIENTS = {"FedProx": {"client": {"name": "fedprox", "learning_rate": 0.1, "batch_size": 8}}}
TREES = ("FedXgbBagging", "FedXgbCyclic")


def test_the_tables_name_every_stock_strategy():
    exported = set(flower.__all__) - {"Strategy", "Result"}
    assert exported == {*STOCK_OPTIONS, *WRAPPERS, *TREES}


@pytest.mark.parametrize("name", STOCK_OPTIONS)
def test_every_stock_strategy_runs_unchanged(tmp_path, name):
    strategy = {"name": STOCK + name, **STOCK_OPTIONS[name]}
    scenario = tiny(strategy=strategy, **CLIENTS.get(name, {}))
    run = simulation.run(scenario, out=tmp_path)
    assert run.summary["exit_code"] == 0
    assert run.rounds[-1]["eval/loss"] < run.rounds[0]["eval/loss"]


@pytest.mark.parametrize("name", WRAPPERS)
def test_every_stock_wrapper_runs_around_a_stock_strategy(tmp_path, name):
    section = {
        "name": STOCK + name,
        "noise_multiplier": 0.01,
        "num_sampled_clients": 6,
        "strategy": {"name": STOCK + "FedAvg"},
        **WRAPPERS[name],
    }
    run = simulation.run(tiny(strategy=section, mods=MODS.get(name, [])), out=tmp_path)
    assert run.summary["exit_code"] == 0
    assert run.rounds[-1]["eval/loss"] < run.rounds[0]["eval/loss"]
    assert run.rounds[-1]["clients/completed"] == 6


@pytest.mark.parametrize("name", TREES)
def test_strategies_for_trees_are_refused_with_the_reason(tmp_path, name):
    with pytest.raises(PluginError, match="trees"):
        simulation.run(tiny(strategy={"name": STOCK + name}), out=tmp_path)


def test_counted_bytes_are_those_of_the_encoded_payloads(tmp_path):
    codec = {"name": MISBEHAVE + "CapturingCodec"}
    CapturingCodec.lengths.clear()
    run = simulation.run(tiny(codec={"up": [codec], "down": "none"}, num_rounds=1), out=tmp_path)
    record = run.rounds[1]
    assert len(CapturingCodec.lengths) == 6
    assert record["comm/up_bytes"] == sum(CapturingCodec.lengths)
    assert record["comm/up_bytes"] == sum(row["up_bytes"] for row in run.clients)
    assert record["comm/down_bytes"] == 6 * (4 * (4 * 3 + 3) + 20)


def test_ctrl_c_leaves_a_readable_folder(tmp_path):
    client = {
        "name": MISBEHAVE + "Faulty",
        "fault": "interrupt",
        "victims": [5],
    }
    with pytest.raises(KeyboardInterrupt):
        simulation.run(tiny(client=client), out=tmp_path)
    (folder,) = tmp_path.glob("tiny/*")
    run = Run.open(folder)
    assert run.status == "interrupted"
    assert run.summary["exit_code"] == 3
    assert run.summary["failed"] == "interrupted"
    assert [r["round"] for r in run.rounds] == [0]


def test_client_state_lives_from_one_participation_to_the_next(tmp_path):
    client = {"name": MISBEHAVE + "Counting"}
    scenario = tiny(client=client, clients_per_round=3, num_rounds=5)
    run = simulation.run(scenario, out=tmp_path)
    count: dict[int, int] = {}
    for row in run.clients:
        count[row["client"]] = count.get(row["client"], 0) + 1
        assert row["seen"] == count[row["client"]]
    assert max(count.values()) > 1


def test_personal_tests_use_the_clients_own_rows(tmp_path):
    scenario = tiny(data={"client_test_fraction": 0.25}, evaluate={"personal": True})
    run = simulation.run(scenario, out=tmp_path)
    assert run.rounds[-1]["comm/down_bytes"] == 2 * 6 * (4 * 15 + 20)  # to train, and to test
    assert [r["stage"] for r in run.clients] == (["train"] * 6 + ["evaluate"] * 6) * 2
    assert 0 <= run.rounds[-1]["personal/accuracy"] <= 1
    assert run.rounds[-1]["personal/loss"] > 0


def test_the_reporter_hears_every_client(tmp_path):
    heard = []

    class Listener(Reporter):
        def clients_done(self, count: int) -> None:
            heard.append(count)

    simulation.run(tiny(), out=tmp_path, reporter=Listener())
    assert sum(heard) == 12


@pytest.mark.slow
def test_a_worker_loads_only_the_libraries_of_its_work(tmp_path):
    """Each costs every worker process a part of a second."""
    (tmp_path / "recipe").write_bytes(pickle.dumps(recipe(tiny())))
    code = (
        "import pickle, sys\nfrom pathlib import Path\nfrom fedsim.engine.worker import Worker\n"
        "Worker(pickle.loads(Path(sys.argv[1]).read_bytes()))\n"
        f"print([m for m in {UNUSED} if m in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "recipe")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_blocks_depend_on_the_cohort_alone():
    assert [list(b) for b in cut([1, 2, 3])] == [[1], [2], [3]]
    assert len(cut(range(1000))) <= BLOCKS_PER_ROUND
    assert [i for b in cut(range(1000)) for i in b] == list(range(1000))


def test_metrics_of_a_block_weigh_by_rows(tmp_path):
    run = simulation.run(tiny(num_clients=40, num_rounds=1), out=tmp_path)
    rows = list(run.clients)
    total = sum(r["num_examples"] for r in rows)
    mean = sum(r["num_examples"] * r["train_loss"] for r in rows) / total
    assert run.rounds[1]["train/loss"] == pytest.approx(mean)
