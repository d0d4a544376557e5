"""Any Flower ClientApp runs on the grid; mods wrap fedsim's own clients."""

import numpy as np
import pytest

from fedsim import simulation
from fedsim.errors import RunError
from fedsim.scenario import load
from tests.problems import tiny


@pytest.mark.parametrize("strategy", ["fedavg", "flwr.serverapp.strategy:FedAvg"])
def test_a_foreign_app_trains_and_keeps_its_context(tmp_path, strategy):
    scenario = tiny(client={"name": "tests.apps:app"}, strategy={"name": strategy}, num_clients=3)
    run = simulation.run(scenario, out=tmp_path)
    assert [r["seen"] for r in run.clients] == [1, 1, 1, 2, 2, 2]
    assert run.rounds[-1]["clients/completed"] == 3


def test_a_foreign_app_may_be_named_in_a_file(tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text(
        "num_rounds: 1\nnum_clients: 2\ntask: {name: module}\n"
        "model: {name: 'tests.problems:logistic'}\ndata: {path: 'tests.problems:blobs'}\n"
        "client: {name: 'tests.apps:app'}\nengine: {backend: inline}\n"
    )
    run = simulation.run(load(file), out=tmp_path)
    assert run.summary["exit_code"] == 0


def test_a_reply_without_weight_is_a_failed_client(tmp_path):
    with pytest.raises(RunError, match="one MetricRecord with 'num-examples'"):
        simulation.run(tiny(client={"name": "tests.apps:broken"}), out=tmp_path)


def test_mods_see_messages_and_change_nothing_by_themselves(tmp_path):
    plain = simulation.run(tiny(num_rounds=1), out=tmp_path)
    mods = ["tests.test_apps:recording_mod"]
    SEEN.clear()
    wrapped = simulation.run(tiny(num_rounds=1, mods=mods), out=tmp_path)
    assert SEEN == [0, 1, 2, 3, 4, 5]
    assert wrapped.rounds[1]["eval/loss"] == pytest.approx(plain.rounds[1]["eval/loss"], rel=1e-5)
    assert np.isfinite(wrapped.rounds[1]["train/loss"])


SEEN: list[int] = []


def recording_mod(message, context, call_next):
    SEEN.append(context.node_id)
    return call_next(message, context)
