"""Codecs in whole runs: bytes by part, memories of both ends, faults, resume, any strategy."""

import math
import random

import numpy as np
import pytest

from fedsim import registry, simulation
from fedsim.chain import build_chain
from fedsim.codec import HEADER
from fedsim.engine.grid import WorkerGrid
from fedsim.errors import PluginError
from tests.engine.killing import Killer, kill_workers
from tests.engine.runs import MISBEHAVE, STOCK, comparable, stopped
from tests.problems import tiny

TOPK = {"name": "topk", "density": 0.2}
EF = {**TOPK, "error_feedback": "ef21"}
DOWN = {"name": "topk", "density": 0.1, "error_feedback": "ef21"}
WEIGHTS = 15
"""Trainable numbers of the tiny problem."""


def setting(up=None, down=None, **changes):
    codec = {"up": up or [], "down": down or []}
    defaults = {"num_rounds": 6, "clients_per_round": 3, "checkpoint": {"every": 1}}
    return tiny(codec=codec, **{**defaults, **changes})


@pytest.fixture
def grids(monkeypatch):
    """The grids that were used, for a look at what they remember."""
    seen = []
    init = WorkerGrid.__init__

    def remember(self, *args, **kwargs):
        init(self, *args, **kwargs)
        seen.append(self)

    monkeypatch.setattr(WorkerGrid, "__init__", remember)
    return seen


UPS = {
    "topk": [TOPK],
    "chain": [TOPK, {"name": "qsgd", "bits": 4}],
    "ef14": [{**TOPK, "error_feedback": "ef14"}],
    "ef21": [EF],
    "ef21 mirrors": [{**TOPK, "error_feedback": {"name": "ef21", "server": "mirrors"}}],
    "ef21+": [{**TOPK, "error_feedback": "ef21+"}],
    "ef21w": [{**TOPK, "error_feedback": {"name": "ef21w", "power_iterations": 2}}],
    "econtrol": [{**TOPK, "error_feedback": {"name": "econtrol", "eta": 0.1}}],
    "powersgd": [{"name": "powersgd", "rank": 1, "error_feedback": "ef14"}],
}


@pytest.mark.slow_variants
@pytest.mark.parametrize("name", UPS)
def test_resume_gives_the_same_bits(tmp_path, name):
    scenario = setting(UPS[name], [DOWN])
    whole = simulation.run(scenario, out=tmp_path / "whole")
    resumed = simulation.resume(stopped(scenario, tmp_path, 4))
    assert comparable(resumed) == comparable(whole)
    assert resumed.summary["weights_sha256"] == whole.summary["weights_sha256"]
    assert whole.rounds[-1]["eval/loss"] < whole.rounds[0]["eval/loss"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ef21", "powersgd"])
def test_any_number_of_workers_gives_the_same_bits(tmp_path, name):
    runs = [
        simulation.run(setting(UPS[name], [DOWN], engine=engine), out=tmp_path)
        for engine in ({"backend": "inline"}, {"backend": "ray", "workers": 2})
    ]
    assert runs[0].summary["weights_sha256"] == runs[1].summary["weights_sha256"]
    assert comparable(runs[0]) == comparable(runs[1])


@pytest.mark.slow
def test_killed_workers_change_no_memory(tmp_path):
    slow = {"name": MISBEHAVE + "Slow", "seconds": 0.05}
    many = {"client": slow, "num_clients": 20, "clients_per_round": 20}
    whole = simulation.run(setting([EF], [DOWN], **many), out=tmp_path)
    scenario = setting([EF], [DOWN], engine={"backend": "ray", "workers": 2}, **many)
    rng = random.Random(0)
    lost = 0
    for _ in range(5):  # a kill may hit workers that have nothing to do, or come too late
        with Killer(rng, kill_workers(rng, 2), most=4, pause_s=0.5) as killer:
            run = simulation.run(scenario, out=tmp_path, reporter=killer)
        assert run.summary["weights_sha256"] == whole.summary["weights_sha256"]
        assert comparable(run, ("clients/retried",)) == comparable(whole, ("clients/retried",))
        lost += sum(r.get("clients/retried", 0) for r in run.rounds)
        if lost:
            break
    assert lost > 0


def test_bytes_by_part_add_up_in_both_directions(tmp_path):
    run = simulation.run(setting([TOPK, {"name": "sign"}], [DOWN]), out=tmp_path)
    for record in run.rounds[1:]:
        for way in ("up", "down"):
            total = record[f"comm/{way}_bytes"]
            parts = {k: v for k, v in record.items() if k.startswith(f"comm/{way}_")}
            named = [v for k, v in parts.items() if k.count("_") > 1 and not k.endswith("cum")]
            assert sum(named) == total
    last = run.rounds[-1]
    assert last["comm/up_values_bytes"] == 3  # three kept signs in a byte, three clients
    assert last["comm/up_scales_bytes"] == 3 * 4
    totals = run.summary["totals"]
    assert totals["comm/up_indices_bytes"] == sum(
        r.get("comm/up_indices_bytes", 0) for r in run.rounds
    )


def test_none_counts_values_and_headers(tmp_path):
    run = simulation.run(setting(num_rounds=1), out=tmp_path)
    record = run.rounds[1]
    assert record["comm/up_values_bytes"] == record["comm/down_values_bytes"] == 3 * 4 * WEIGHTS
    assert record["comm/up_header_bytes"] == 3 * HEADER.size


@pytest.mark.slow_variants
@pytest.mark.parametrize("strategy", ["fedavg", STOCK + "FedAvg"])
@pytest.mark.parametrize("feedback", ["ef14", "ef21", "ef21+", "econtrol"])
def test_density_one_with_everybody_is_no_compression(tmp_path, strategy, feedback):
    section = {"name": feedback} | ({"eta": 0.3} if feedback == "econtrol" else {})
    same = {"clients_per_round": 6, "strategy": {"name": strategy}}
    up = [{"name": "topk", "density": 1.0, "error_feedback": section}]
    one = simulation.run(setting(up, **same), out=tmp_path)
    two = simulation.run(setting(**same), out=tmp_path)
    for a, b in zip(one.rounds, two.rounds, strict=True):
        assert a["eval/loss"] == pytest.approx(b["eval/loss"], rel=1e-5)


def estimates(grid, clients) -> dict[int, np.ndarray]:
    kept = {c: grid.residuals.get(c) for c in clients}
    prefix = "feedback/estimate/"
    return {
        c: np.concatenate([x.ravel() for k, x in r.items() if k.startswith(prefix)])
        for c, r in kept.items()
        if r
    }


def test_the_servers_mean_is_that_of_the_clients_estimates_whatever_fails(tmp_path, grids):
    """Failed replies change neither end: both describe the same estimates afterwards."""
    client = {
        "name": MISBEHAVE + "Faulty",
        "fault": "raise",
        "victims": [1, 4],
    }
    scenario = setting([EF], client=client, num_rounds=8, max_failed_fraction=1.0)
    run = simulation.run(scenario, out=tmp_path)
    assert sum(r.get("clients/failed", 0) for r in run.rounds) > 2
    (grid,) = grids
    found = estimates(grid, range(6))
    assert set(found) == {0, 2, 3, 5} & {r["client"] for r in run.clients}
    mean = grid.clients_mean.result(grid.facts["arrays"])
    seen = np.concatenate([x.ravel() for x in mean.values()])
    np.testing.assert_allclose(seen, np.mean(list(found.values()), axis=0), atol=1e-6)


def test_a_client_that_failed_goes_on_from_its_last_message(tmp_path, grids):
    """The residual of a failed round is the one from before it."""
    good = simulation.run(setting([EF], num_rounds=1, clients_per_round=6), out=tmp_path)
    late = {"name": MISBEHAVE + "FailsInRoundTwo"}
    bad = setting([EF], num_rounds=2, clients_per_round=6, client=late, max_failed_fraction=1.0)
    simulation.run(bad, out=tmp_path)
    one, two = (estimates(grid, range(6)) for grid in grids)
    assert good.rounds[1]["clients/completed"] == 6
    for client, x in one.items():
        np.testing.assert_array_equal(x, two[client])


def test_strategies_that_want_every_update_need_mirrors(tmp_path):
    krum = {"name": STOCK + "Krum", "num_malicious_nodes": 1}
    with pytest.raises(PluginError, match=r"wants every client's update.*server: mirrors"):
        simulation.run(setting([EF], strategy=krum), out=tmp_path)
    run = simulation.run(setting(UPS["ef21 mirrors"], strategy=krum), out=tmp_path)
    assert run.rounds[-1]["eval/loss"] < run.rounds[0]["eval/loss"]


def test_a_changing_weight_is_refused_where_the_server_keeps_a_mean(tmp_path):
    client = {"name": MISBEHAVE + "Growing"}
    scenario = setting([EF], client=client, clients_per_round=6, max_failed_fraction=1.0)
    run = simulation.run(scenario, out=tmp_path)
    assert [r.get("clients/failed") for r in run.rounds[1:3]] == [0, 6]
    assert "num_examples was 21 and is 22" in "\n".join(run.events)


LOSSY = {"mix": [{"profile": "phone-mid", "share": 1.0}], "dropout": 0.4}


def down_bytes(run, client: int) -> list[int]:
    return [r["down_bytes"] for r in run.clients if r["client"] == client]


@pytest.mark.parametrize("devices", [None, LOSSY])
def test_catching_up_costs_what_was_missed_or_the_whole(tmp_path, grids, devices):
    run = simulation.run(setting([], [DOWN], num_rounds=12, devices=devices), out=tmp_path)
    (grid,) = grids
    sizes = np.diff(grid.downlink.memory["sent"])
    assert len(sizes) == 12
    whole = HEADER.size + 4 * WEIGHTS
    last: dict[int, int] = {}
    for row in run.clients:
        n, client = row["round"], row["client"]
        needed = sizes[last[client] : n].sum() if client in last else whole
        if row["status"] == "ok":  # the server knows only what was answered to
            assert row["down_bytes"] == min(needed, whole)
            last[client] = n
        assert row["down_bytes"] <= min(needed, whole)
    assert any(row["status"] == "dropped" for row in run.clients) == bool(devices)
    assert any(r["comm/down_catchup_bytes"] > 0 for r in run.rounds[2:])
    assert run.rounds[-1]["comm/down_bytes"] < 3 * whole or devices


def test_everybody_present_needs_no_catching_up(tmp_path):
    run = simulation.run(setting([], [DOWN], clients_per_round=6), out=tmp_path)
    assert run.rounds[1]["comm/down_catchup_bytes"] == 6 * (HEADER.size + 4 * WEIGHTS)
    assert "comm/down_catchup_bytes" not in run.rounds[2]


def test_the_reference_of_server_and_clients_follows_the_weights(tmp_path, grids):
    still = {"name": "sgd", "learning_rate": 1e-9}
    run = simulation.run(setting([], [DOWN], client=still, num_rounds=2), out=tmp_path)
    (grid,) = grids
    state = grid.downlink.memory["state"]
    for name, x in run_weights(run).items():
        np.testing.assert_allclose(state[f"feedback/estimate/{name}"], x, atol=1e-6)


def run_weights(run) -> dict[str, np.ndarray]:
    from fedsim.checkpoint import Checkpoints

    return Checkpoints(run.path, 2).latest().weights


@pytest.mark.parametrize("strategy", ["fedavg", STOCK + "FedAvg"])
def test_own_and_stock_strategies_agree_under_a_lossy_way_down(tmp_path, strategy):
    mine = setting([], ["int8"], strategy={"name": strategy})
    run = simulation.run(mine, out=tmp_path)
    plain = simulation.run(setting(), out=tmp_path)
    assert run.rounds[-1]["eval/loss"] == pytest.approx(plain.rounds[-1]["eval/loss"], rel=0.02)


def test_a_rank_above_every_matrix_is_refused_with_the_largest(tmp_path):
    with pytest.raises(PluginError, match=r"codec.up.rank: rank 9 makes no array.*At most 1"):
        simulation.run(setting([{"name": "powersgd", "rank": 9}]), out=tmp_path)


@pytest.mark.parametrize("feedback", ["ef21", "econtrol"])
def test_of_one_client_the_servers_mean_is_its_mirror(tmp_path, feedback):
    def weights(server):
        section = {"name": feedback, "server": server}
        up = [{**TOPK, "error_feedback": section}]
        alone = setting(up, num_clients=1, clients_per_round=1, num_rounds=3)
        return simulation.run(alone, out=tmp_path / server).rounds[-1]["eval/loss"]

    assert weights("mean") == pytest.approx(weights("mirrors"), rel=1e-5)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.0000001, math.nan, math.inf])
def test_shares_outside_0_to_1_are_refused(share):
    for name in registry.available("codecs"):
        options = registry.options(registry.find("codecs", name))
        for option in {"density", "kept"} & set(options):
            with pytest.raises(PluginError, match=f"option '{option}' of codec '{name}'"):
                build_chain([{"name": name, option: share}])
