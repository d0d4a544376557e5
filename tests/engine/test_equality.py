"""Equal seeds give equal bits: in one process, on any number of workers, on one node or two."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest

from fedsim import simulation
from fedsim.engine.inline import InlineGrid
from fedsim.engine.launch import Launch
from fedsim.engine.ray_grid import RayGrid
from fedsim.engine.states import ClientStates
from fedsim.engine.worker import Worker
from tests.engine.runs import MISBEHAVE, STOCK, outcome, recipe
from tests.problems import tiny

STRATEGIES = {
    "fedavg": {"name": "fedavg"},
    "fedadam": {"name": "fedadam"},
    "co2": {"name": "co2", "gap": "gap_aware", "clip": 0.05},
    "flower-krum": {"name": STOCK + "Krum", "num_malicious_nodes": 1},
    "flower-median": {"name": STOCK + "FedMedian"},
}
UNLIKE = {"name": "dirichlet", "alpha": 1.0, "partition_by": "label", "min_partition_size": 2}
BACKENDS = {"1 worker": 1, "2 workers": 2, "3 workers": 3}


def scenario(strategy="fedavg", **engine):
    """More clients than blocks, unlike each other, with private states."""
    return tiny(
        num_clients=40,
        clients_per_round=18,
        num_rounds=3,
        data={"options": {"rows": 400}, "partitioner": UNLIKE},
        client={"name": MISBEHAVE + "Counting", "batch_size": 4},
        strategy=STRATEGIES[strategy],
        engine={"backend": "inline", **engine},
    )


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What one process makes of each strategy."""
    out = tmp_path_factory.mktemp("inline")
    return {name: outcome(simulation.run(scenario(name), out=out)) for name in STRATEGIES}


def run_on(grid, name, out):
    """Run one strategy on a grid that is open already: workers know nothing of strategies."""
    grid.states.restore({})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulation, "open_grid", lambda *arguments: nullcontext(grid))
        return outcome(simulation.run(scenario(name), out=out))


def check_all(grid, expected, out):
    for name in STRATEGIES:
        assert run_on(grid, name, out) == expected[name], name


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKENDS)
def test_any_number_of_workers_gives_the_bits_of_one_process(tmp_path, expected, name):
    here = recipe(scenario(backend="ray", workers=BACKENDS[name]))
    with (
        Launch(here.scenario.engine, here.scenario.model) as launch,
        RayGrid(here, launch, states=ClientStates(tmp_path)) as grid,
    ):
        check_all(grid, expected, tmp_path)


@contextmanager
def two_nodes() -> Iterator[str]:
    """The address of a Ray cluster whose nodes have one CPU each."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        cluster.add_node(num_cpus=1)
        yield cluster.address
    finally:
        cluster.shutdown()


@pytest.mark.slow
def test_two_nodes_give_the_bits_of_one_process(tmp_path, expected):
    with two_nodes() as address:
        there = recipe(scenario(backend="ray", address=address, workers=2))
        with (
            Launch(there.scenario.engine, there.scenario.model) as launch,
            RayGrid(there, launch, states=ClientStates(tmp_path)) as grid,
        ):
            assert len(places_of_actors()) == 2, "one worker on each node"
            check_all(grid, expected, tmp_path)


def places_of_actors() -> set[str]:
    """The nodes on which Ray's living actors are."""
    from ray._private.state import actors

    return {a["Address"]["NodeID"] for a in actors().values() if a["State"] == "ALIVE"}


class UnorderedGrid(InlineGrid):
    """Several workers in this process; any of them gets the next call, and calls come in any order.

    The quick stand-in for Ray: what it cannot show is that bytes survive the way between processes.
    """

    num_workers = 3

    def __enter__(self):
        super().__enter__()
        self.random = random.Random(11)
        self.workers = [self.worker, *(Worker(self.recipe) for _ in range(self.num_workers - 1))]
        return self

    def map(self, method: str, calls: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        order = self.random.sample(range(len(calls)), len(calls))
        done = {
            i: getattr(self.random.choice(self.workers), method)(*self.filled(calls[i]))
            for i in order
        }
        yield from (done[i] for i in range(len(calls)))


def test_neither_worker_nor_order_matters(tmp_path, expected):
    with UnorderedGrid(recipe(scenario()), states=ClientStates(tmp_path)) as grid:
        check_all(grid, expected, tmp_path)
        assert {w._received[0] for w in grid.workers} != {""}, "every worker had work"
