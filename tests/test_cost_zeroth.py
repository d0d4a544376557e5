"""What methods without a backward pass cost a device: memory of inference, work of every move."""

import numpy as np
import pytest

from fedsim import simulation
from fedsim.directions import ADD_FLOPS
from tests.problems import tiny
from tests.test_cost import task_of

SIZE = 4 * 3 + 3  # of the tiny model
DEVICES = {"mix": [{"profile": "jetson-tx2", "share": 1}]}
ROWS, STEPS = 8, 5
FORWARD = 2 * 4 * 3
"""Of a row of the tiny model."""


@pytest.mark.parametrize(
    ("client", "copies"),
    [
        ({"name": "kseed"}, 1),
        ({"name": "kseed", "exact": True}, 2),
        ({"name": "mezo"}, 2),
        ({"name": "mezo", "exact": True}, 3),
        ({"name": "fedmezo"}, 2),
        ({"name": "zo_adamu"}, 3),
        ({"name": "sgd"}, 3),  # weights, received copy, gradients
    ],
)
def test_memory_is_that_of_inference_and_of_what_a_method_keeps(client, copies):
    strategies = {"kseed": "fedkseed", "fedmezo": "fedmezo"}
    strategy = {"name": strategies.get(client["name"], "fedavg")}
    task, meter = task_of(tiny(client=client, strategy=strategy))
    assert meter.fixed_bytes == copies * SIZE * 4
    batch = task.collate(task.client_data(0), np.arange(ROWS))
    if client["name"] != "sgd":
        assert meter.memory_bytes(batch) == meter.fixed_bytes + ROWS * (4 + 3) * 4


def rows_of(tmp_path, **changes):
    run = simulation.run(tiny(devices=DEVICES, num_rounds=2, **changes), out=tmp_path)
    return [row for row in run.clients if row["status"] == "ok"]


def passed(rows: int) -> int:
    """Rows in the first batches of a client, epoch after epoch."""
    epoch = [min(ROWS, rows - start) for start in range(0, rows, ROWS)]
    return sum(epoch[i % len(epoch)] for i in range(STEPS))


def test_a_seed_client_pays_for_probes_steps_and_replay(tmp_path):
    client = {"name": "kseed", "local_steps": STEPS, "batch_size": ROWS}
    rows = rows_of(tmp_path, client=client, strategy={"name": "fedkseed", "num_seeds": 16})
    for row in rows:
        # to w + eps z, to w - eps z, and back with the step
        moves = ADD_FLOPS * SIZE * (3 * STEPS + row["replayed_seeds"])
        assert row["work/flops"] == 2 * passed(row["num_examples"]) * FORWARD + moves
    replayed = {row["round"]: row["replayed_seeds"] for row in rows}
    assert replayed[1] == 0 < replayed[2]


def test_catching_up_on_missing_seeds_is_less_work_than_on_all(tmp_path):
    client = {"name": "kseed", "local_steps": 2, "batch_size": ROWS}
    common = {"client": client, "clients_per_round": 2, "num_rounds": 6}
    work = {}
    for how in ("accumulators", "missing"):
        strategy = {"name": "fedkseed", "num_seeds": 64, "synchronise": how}
        scenario = tiny(devices=DEVICES, strategy=strategy, **common)
        run = simulation.run(scenario, out=tmp_path / how)
        work[how] = sum(row["work/flops"] for row in run.clients)
    assert work["missing"] < work["accumulators"]


def test_a_projecting_client_pays_for_coordinates_and_replay(tmp_path):
    sgd = {"local_steps": STEPS, "batch_size": ROWS}
    plain = rows_of(tmp_path / "sgd", client={"name": "sgd", **sgd})
    strategy = {"name": "ferret", "num_bases": 8}
    rows = rows_of(tmp_path / "ferret", client={"name": "ferret", **sgd}, strategy=strategy)
    first, later = (
        {
            r["work/flops"] - p["work/flops"]
            for r, p in zip(rows, plain, strict=True)
            if r["round"] == n
        }
        for n in (1, 2)
    )
    # two blocks of 12 and 3 values: the one that moved more along 8 vectors, the other along 2 to 8
    at_most = ADD_FLOPS * 8 * SIZE
    assert all(0 < extra <= at_most for extra in first)
    assert min(later) > max(first)
