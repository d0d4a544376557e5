"""What is kept for a client between rounds, and what of it a failure or a lost answer changes."""

from threading import Thread

import numpy as np
import pytest

from fedsim import simulation, wire
from fedsim.engine import worker
from fedsim.errors import ScenarioError
from tests.engine.runs import MISBEHAVE, STOCK, outcome, six_rounds, stopped
from tests.problems import tiny

IN_PLACE = {"name": MISBEHAVE + "CountingInPlace"}
PHONES = {"mix": [{"profile": "phone-mid", "share": 1.0}]}
LOSSY = {**PHONES, "dropout": 0.4}
ADAMU = {"name": "zo_adamu", "momentum": "keep", "warmup": 0.0, "local_steps": 3}
RAY = {"backend": "ray", "workers": 1}


def seen(run):
    """Client and count of every participation that was answered."""
    return [(row["client"], row["seen"]) for row in run.clients if row["status"] == "ok"]


def test_a_state_may_be_changed_in_place(tmp_path):
    run = simulation.run(tiny(client=IN_PLACE, num_rounds=3), out=tmp_path)
    assert seen(run) == [(client, n) for n in (1, 2, 3) for client in range(6)]


@pytest.mark.parametrize("client", [IN_PLACE, ADAMU], ids=["in place", "zo_adamu"])
def test_what_a_vanished_client_did_is_lost_here_and_after_resuming(tmp_path, client):
    scenario = six_rounds(client=client, devices=LOSSY, clients_per_round=6)
    whole = simulation.run(scenario, out=tmp_path / "whole")
    assert sum(r.get("clients/dropped", 0) for r in whole.rounds) >= 5
    if client is IN_PLACE:
        for c in range(6):
            counts = [n for number, n in seen(whole) if number == c]
            assert counts == [*range(1, len(counts) + 1)]
    assert outcome(simulation.resume(stopped(scenario, tmp_path, 4))) == outcome(whole)


@pytest.mark.slow
@pytest.mark.parametrize("client", [IN_PLACE, ADAMU], ids=["in place", "zo_adamu"])
def test_what_a_vanished_client_did_is_lost_on_ray_too(tmp_path, client):
    changes = {"client": client, "devices": LOSSY, "clients_per_round": 6}
    here = simulation.run(six_rounds(**changes), out=tmp_path / "here")
    there = simulation.run(six_rounds(**changes, engine=RAY), out=tmp_path / "there")
    assert outcome(there) == outcome(here)


@pytest.mark.parametrize("server_round", [7, 10, 13])
def test_an_asynchronous_run_does_not_save_states_of_its_future(tmp_path, server_round):
    scenario = tiny(
        client={"name": MISBEHAVE + "Counting"},
        strategy={"name": "fedasync"},
        devices={**PHONES, "speed_sigma": 1.5},
        num_rounds=16,
        clients_per_round=5,
        checkpoint={"every": 3},
    )
    whole = simulation.run(scenario, out=tmp_path / "whole")
    resumed = simulation.resume(stopped(scenario, tmp_path, server_round))
    assert outcome(resumed) == outcome(whole)


@pytest.mark.parametrize("fault", ["raise", "object"])
def test_a_failed_clients_state_is_that_of_the_round_before(tmp_path, fault):
    run = simulation.run(tiny(client={**IN_PLACE, "fault": fault}, num_rounds=3), out=tmp_path)
    assert [r["clients/failed"] for r in run.rounds[1:]] == [0, 1, 0]
    assert [n for client, n in seen(run) if client == 2] == [1, 2]


@pytest.mark.parametrize("feedback", ["ef14", "ef21", {"name": "ef21", "server": "mirrors"}])
@pytest.mark.parametrize("changes", [{}, {"strategy": {"name": STOCK + "FedMedian"}}])
@pytest.mark.parametrize("devices", [None, {**PHONES, "deadline_s": 1e9}])
def test_a_rejected_message_leaves_the_codecs_memory_as_it_was(
    tmp_path, feedback, changes, devices
):
    if feedback == "ef21" and changes:
        pytest.skip("the server's mean is no list of updates")
    codec = {"name": MISBEHAVE + "LyingTopK", "density": 0.5, "error_feedback": feedback}
    scenario = tiny(codec={"up": [codec]}, num_rounds=4, devices=devices, **changes)
    run = simulation.run(scenario, out=tmp_path)
    assert [r["clients/failed"] for r in run.rounds[1:]] == [1, 0, 0, 0]
    (failed,) = [row for row in run.clients if row["status"] == "failed"]
    assert failed["error"] in "\n".join(run.events)
    assert "client 2, round 1, " in failed["error"]


LIES = {
    "nan": lambda x: np.full_like(x, np.nan) if x.dtype.kind == "f" else x,
    "outside": lambda x: np.full_like(x, 200) if x.dtype.kind == "u" else x,
    "short": lambda x: x[:1] if x.dtype.kind == "f" else x,
}
KSEED = {"name": "kseed", "local_steps": 5, "batch_size": 4}
SEEDS = {
    "summed": {"strategy": {"name": "fedkseed", "num_seeds": 20}},
    "one by one": {"strategy": {"name": "fedkseed", "num_seeds": 20}, "devices": LOSSY},
    "pro": {"strategy": {"name": "fedkseed", "num_seeds": 20, "pro": True}},
    "asynchronous": {
        "strategy": {"name": "fedbuff_kseed", "num_seeds": 20, "buffer_size": 2},
        "devices": PHONES,
    },
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("changes", SEEDS.values(), ids=SEEDS)
def test_a_lying_message_of_vectors_is_one_failed_client(tmp_path, monkeypatch, lie, changes):
    """The third message holds, soundly packed, what the client's own check would have refused."""
    count = iter(range(1, 1000))

    def packed(arrays):
        bent = {name: LIES[lie](x) for name, x in arrays.items()}
        return pack(bent if next(count) == 3 else arrays)

    pack = wire.pack
    monkeypatch.setattr(worker, "wire", Shadow(pack=packed))
    run = simulation.run(tiny(client=KSEED, num_rounds=3, **changes), out=tmp_path)
    assert run.status == "done"
    assert sum(r.get("clients/failed", 0) for r in run.rounds) == 1
    assert np.isfinite(run.rounds[-1]["eval/loss"])


class Shadow:
    """The module ``wire`` with another ``pack``."""

    def __init__(self, pack):
        self.pack = pack

    def __getattr__(self, name):
        return getattr(wire, name)


def test_a_client_finds_the_config_that_the_server_sent(tmp_path):
    run = simulation.run(tiny(client={"name": MISBEHAVE + "Scribbling"}), out=tmp_path)
    assert len({row["before"] for row in run.clients}) == 1


@pytest.mark.parametrize("codec", [{}, {"down": [{"name": "int8"}]}])
def test_what_a_client_received_cannot_be_changed_for_the_next(tmp_path, codec):
    client = {"name": MISBEHAVE + "Scribbling", "into": "received"}
    scenario = tiny(client=client, codec=codec, max_failed_fraction=1.0)
    run = simulation.run(scenario, out=tmp_path)
    assert all("read-only" in row["error"] for row in run.clients)


def test_a_time_limit_outside_the_main_thread_is_refused(tmp_path):
    errors = []

    def work():
        try:
            simulation.run(tiny(engine={"client_timeout_s": 5.0}), out=tmp_path)
        except ScenarioError as error:
            errors.append(str(error))

    thread = Thread(target=work)
    thread.start()
    thread.join()
    assert "only the main thread" in errors[0]
