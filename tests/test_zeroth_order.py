"""MeZO and FedMeZO: closed forms, restoring, limit cases, memory, resume."""

import tracemalloc

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fedsim import partners, simulation
from fedsim.checkpoint import Checkpoints
from fedsim.client import Client
from fedsim.clients._zeroth import Log, Walker, draw_seed, forward_only, slope
from fedsim.clients.mezo import MeZO
from fedsim.directions import Directions
from fedsim.errors import PluginError
from fedsim.scenario import load
from fedsim.strategies.fedmezo import FedMeZO, standardised
from tests.engine.runs import comparable, stopped
from tests.problems import tiny
from tests.test_clients import train, worker
from tests.test_fedkseed import client_of, final_weights, reply


def vector(*values: float) -> torch.nn.Module:
    module = torch.nn.Module()
    module.theta = torch.nn.Parameter(torch.tensor(values, dtype=torch.float32))
    return module


# -- estimates ---------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [1e-3, 0.1, 10.0])
def test_on_a_linear_loss_the_slope_is_exact_for_every_probe(eps):
    c, module = torch.tensor([1.0, -2.0, 0.5, 3.0]), vector(0, 0, 0, 0)
    client = client_of(module, lambda: c @ module.theta)
    with forward_only(client):
        g = slope(Walker(client, "gaussian", eps, True).probe({}, 9), eps, None)
    assert g == pytest.approx(float(c.numpy() @ Directions(4).values(9)), rel=2e-6)


def test_on_a_quadratic_the_slope_has_no_error_of_eps():
    h, module = torch.diag(torch.tensor([1.0, 4.0, 9.0])), vector(1, -1, 0.5)
    client = client_of(module, lambda: 0.5 * module.theta @ h @ module.theta)
    z = Directions(3).values(4)
    with forward_only(client):
        walker = Walker(client, "gaussian", 0.5, True)
        g = slope(walker.probe({}, 4), 0.5, None)
    assert g == pytest.approx(float(z @ np.array([1, -4, 4.5])), rel=1e-5)


def test_the_estimate_is_unbiased():
    gradient = np.array([1.0, -2.0, 0.5, 3.0])
    z = Directions(400_000).values(1).reshape(-1, 4).astype(float)
    mean = ((z @ gradient)[:, None] * z).mean(axis=0)
    bound = 3 / np.sqrt(len(z)) * np.sqrt(5) * np.linalg.norm(gradient)
    assert np.linalg.norm(mean - gradient) < bound


# -- probes leave nothing behind ---------------------------------------------------------------


def test_exact_probes_restore_every_bit_and_others_stay_within_their_bound():
    torch.manual_seed(0)
    for exact in (True, False):
        module = torch.nn.Linear(300, 200)
        client = client_of(module, lambda m=module: m.weight.square().mean())
        before = module.weight.detach().numpy().copy()
        with forward_only(client):
            walker = Walker(client, "gaussian", 1e-3, exact)
            for seed in range(200):
                walker.probe({}, seed)
            walker.settle()
        error = np.abs(module.weight.detach().numpy() - before)
        if exact:
            assert not error.any()
        else:
            assert 0 < error.max() < 3 * 200 * 2**-24 * (np.abs(before).max() + 1e-3 * 4.4)
            assert np.linalg.norm(error) / np.linalg.norm(before) < 2e-6


class Allocated(TorchDispatchMode):
    """Adds up the bytes of results with memory of their own."""

    num_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {x.untyped_storage().data_ptr() for x in args if isinstance(x, torch.Tensor)}
        for x in [result] if isinstance(result, torch.Tensor) else []:
            fresh = x.untyped_storage().data_ptr() not in given
            self.num_bytes += x.untyped_storage().nbytes() if fresh else 0
        return result


def test_a_step_needs_no_more_memory_than_a_forward_pass():
    """Beside the parameters: a few blocks per thread, and no graph for a backward pass."""
    module = torch.nn.Linear(2000, 1000)
    x = torch.ones(1, 2000)
    graphs = []

    def loss():
        out = module(x).square().mean()
        graphs.append(out.requires_grad)
        return out

    client = client_of(module, loss)
    with forward_only(client):
        walker = Walker(client, "gaussian", 1e-3, exact=False)
        with Allocated() as tensors:
            walker.probe({}, 1)
            walker.move({1: -1e-3})
        tracemalloc.start()
        walker.probe({}, 2)
        walker.move({2: -1e-3})
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert not any(graphs)
    assert peak < 0.1 * 4 * 2_001_000 * torch.get_num_threads()
    assert 4 * 2 * 1000 <= tensors.num_bytes < 0.1 * 4 * 2_001_000  # two forward passes


def transposed() -> torch.nn.Module:
    module = torch.nn.Linear(4, 3)
    module.weight = torch.nn.Parameter(module.weight.detach().t().contiguous().t())
    return module


def as_usual() -> torch.nn.Module:
    return torch.nn.Linear(4, 3)


@pytest.mark.parametrize(
    ("client", "strategy"),
    [
        ("mezo", {"name": "fedavg"}),
        ("zo_adamu", {"name": "fedavg"}),
        ("kseed", {"name": "fedkseed", "replay": "clients"}),
    ],
)
def test_how_parameters_lie_in_memory_changes_nothing(tmp_path, client, strategy):
    digests = set()
    for model in ("as_usual", "transposed"):
        scenario = tiny(
            model={"name": f"tests.test_zeroth_order:{model}"},
            client={"name": client, "local_steps": 3, "batch_size": 8},
            strategy=strategy,
        )
        digests.add(simulation.run(scenario, out=tmp_path).summary["weights_sha256"])
    assert len(digests) == 1


def test_evaluation_mode_turns_dropout_off():
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5))
    client = client_of(module.train(), lambda: module(torch.ones(1, 4)).sum())
    with forward_only(client):
        assert len({client.loss({}).item() for _ in range(5)}) == 1


# -- MeZO and FedMeZO --------------------------------------------------------------------------


def mezo(**options):
    return {"name": "mezo", "learning_rate": 0.02, "batch_size": 1000, **options}


def test_several_directions_are_averaged_and_weights_decay():
    one = train(worker(client=mezo(local_steps=1)), 0).mean
    many = train(worker(client=mezo(local_steps=1, num_directions=500, learning_rate=0.2)), 0).mean
    reference = train(worker(client={"name": "sgd", "learning_rate": 0.2, "batch_size": 1000}), 0)
    a = np.concatenate([x.ravel() for x in many.values()])
    b = np.concatenate([x.ravel() for x in reference.mean.values()])
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.95
    decayed = train(worker(client=mezo(local_steps=1, weight_decay=0.5)), 0).mean
    start = worker().like
    np.testing.assert_array_equal(decayed["bias"], one["bias"])
    expected = one["weight"] - 0.02 * 0.5 * start["weight"]
    np.testing.assert_allclose(decayed["weight"], expected, atol=1e-6)


def test_a_step_is_the_mean_over_its_directions():
    """On a linear loss: -eta / 2 sum_k <c, z_k> z_k."""
    c, module = torch.tensor([1.0, -2.0, 0.5, 3.0]), vector(0, 0, 0, 0)
    client = client_of(module, lambda: c @ module.theta)
    again = torch.Generator().manual_seed(0)
    z = np.stack([Directions(4).values(draw_seed(again)) for _ in range(2)]).astype(np.float64)
    method = MeZO(learning_rate=0.5, eps=0.1, num_directions=2)
    with forward_only(client):
        walker = Walker(client, "gaussian", 0.1, exact=True)
        method.step(client, walker, {}, 0, Log(client))
    expected = -0.5 / 2 * (z @ c.numpy()) @ z
    np.testing.assert_allclose(module.theta.detach().numpy(), expected, rtol=1e-5)


def test_a_clip_drops_steps():
    report = train(worker(client=mezo(loss_clip=1e-9)), 0).reports[0]
    assert report.metrics["dropped_steps"] == 30
    assert not any(
        x.any() for x in train(worker(client=mezo(loss_clip=1e-9, exact=True)), 0).mean.values()
    )


def test_who_drops_every_step_reports_no_loss(tmp_path, monkeypatch):
    """A loss of 0 would count as the best one."""
    loss = Client.loss

    def lost(self, batch):
        return loss(self, batch) * float("nan" if self.id == 2 else 1)

    monkeypatch.setattr(Client, "loss", lost)
    strategy = {"name": "fedmezo", "signal": "round-wise", "learning_rate": 0.02, "spread": 0.01}
    client = {"name": "fedmezo", "local_steps": 3}
    cohort = {"num_clients": 3, "num_rounds": 2, "checkpoint": {"every": 1}}
    run = simulation.run(tiny(**cohort, client=client, strategy=strategy), out=tmp_path)
    rows = {row["client"]: row for row in run.clients if row["round"] == 1}
    assert rows[2]["status"] == "ok"
    assert rows[2]["dropped_steps"] == 3
    assert "train_loss" not in rows[2]
    assert rows[0]["train_loss"] > 0
    assert "train/loss" not in run.rounds[-1]  # a mean over some would pass for one over all
    state = Checkpoints(run.path, 2).latest().strategy["state"]
    assert set(state["history"]) == {0, 1}


def fedmezo(tmp_path, steps=1, clients=4, client="fedmezo", strategy=None, rounds=3, **changes):
    section = {"name": client, "batch_size": 1000, "local_steps": steps, "learning_rate": 0.02}
    plan = {"num_clients": clients, "num_rounds": rounds, "client": section, **changes}
    plan["strategy"] = strategy or {
        "name": "fedmezo", "signal": "frozen", "learning_rate": 0.02, "spread": 0.0,
    }  # fmt: skip
    return simulation.run(tiny(**plan), out=tmp_path)


def test_one_client_is_mezo(tmp_path):
    runs = [
        fedmezo(tmp_path, 5, 1),
        fedmezo(tmp_path, 5, 1, "mezo", {"name": "fedavg"}),
    ]
    assert runs[0].summary["weights_sha256"] == runs[1].summary["weights_sha256"]


def test_one_step_along_shared_seeds_is_mezo_with_the_whole_batch(tmp_path):
    shared = {
        "name": "fedmezo", "signal": "frozen", "learning_rate": 0.02, "spread": 0.0,
        "shared_seeds": True,
    }  # fmt: skip
    many = fedmezo(tmp_path, strategy=shared)
    one = fedmezo(tmp_path, clients=1, strategy=shared)
    apart = fedmezo(tmp_path)
    for name, x in final_weights(one).items():
        np.testing.assert_allclose(final_weights(many)[name], x, atol=2e-4)
        assert np.abs(final_weights(apart)[name] - x).max() > 1e-3


def test_rates_follow_signals_and_equal_signals_do_not_divide_by_zero(tmp_path):
    assert standardised({}) == {}
    assert standardised({1: 2.0, 2: 2.0}) == {1: 0.0, 2: 0.0}
    strategy = FedMeZO(learning_rate=1e-5, spread=5e-6, signal="round-wise")
    strategy.state["history"] = {1: [9.0, 1.0], 2: [2.0], 3: [6.0]}
    rates = strategy.rates(2, [1, 2, 3, 4])
    assert rates[3] == pytest.approx(1.5e-5)
    assert 5e-6 < rates[1] < rates[2] < 1e-5
    assert rates[4] == 1e-5
    late = FedMeZO(learning_rate=1e-5, spread=5e-6, signal="five-round")
    late.state["history"] = {1: [1.0, 3.0], 2: [2.0], 3: [5.0]}
    assert set(late.rates(5, [1, 2, 3]).values()) == {1e-5}
    assert late.rates(6, [1, 2, 3])[1] == late.rates(6, [1, 2, 3])[2]
    with pytest.raises(PluginError, match="fall to 0"):
        FedMeZO(learning_rate=1e-5, spread=1e-5)


@pytest.mark.parametrize("client", ["fedmezo", "mezo", "zo_adamu"])
def test_clients_go_by_the_rates_that_the_server_tells(tmp_path, client):
    digests = set()
    for rate in (1e-4, 1e-2):
        strategy = {"name": "fedmezo", "learning_rate": rate, "spread": 0.0}
        run = fedmezo(tmp_path, client=client, strategy=strategy, rounds=1)
        digests.add(run.summary["weights_sha256"])
    assert len(digests) == 2


def test_clients_with_a_rate_of_their_own_are_refused():
    with pytest.raises(PluginError, match=r"'sgd' ignores the learning-rate.*mezo, zo_adamu"):
        partners.check(tiny(client={"name": "sgd"}, strategy={"name": "fedmezo"}))


def test_the_signal_of_model_diff_is_the_distance_from_the_mean():
    """Deltas 0 and 4 with weights 3 and 1 have the mean 1; distances add up over tensors."""
    strategy = FedMeZO(signal="model-diff")
    strategy._weights = {"a": np.zeros(4, np.float32), "b": np.zeros(9, np.float32)}
    zero = strategy._weights
    four = {name: x + np.float32(4) for name, x in zero.items()}
    replies = [reply(zero, 3), reply(four, 1)]
    replies[1].metadata.src_node_id = 1
    strategy.aggregate_train(1, replies)
    assert strategy.state["history"] == {0: [2.0 + 3.0], 1: [3 * 2.0 + 3 * 3.0]}


def test_the_server_steps_along_the_mean_delta():
    strategy = FedMeZO(server_learning_rate=0.5)
    moved = strategy.server_update({"a": np.float32([1, 2])}, {"a": np.float32([4, -4])}, {})
    assert moved["a"].tolist() == [3.0, 0.0]


@pytest.mark.slow_variants
@pytest.mark.parametrize("signal", ["model-diff", "round-wise", "five-round", "random", "frozen"])
def test_every_signal_runs_and_resumes(tmp_path, signal):
    plan = {
        "client": {"name": "fedmezo", "batch_size": 8, "local_steps": 4},
        "strategy": {"name": "fedmezo", "signal": signal, "learning_rate": 0.02, "spread": 0.01},
        "num_rounds": 8 if signal == "five-round" else 4, "checkpoint": {"every": 1},
    }  # fmt: skip
    whole = simulation.run(tiny(**plan), out=tmp_path / "whole")
    resumed = simulation.resume(stopped(tiny(**plan), tmp_path, plan["num_rounds"] - 1))
    assert comparable(resumed) == comparable(whole)
    assert resumed.summary["weights_sha256"] == whole.summary["weights_sha256"]


def test_mezo_trains_an_adapter_alone(tmp_path):
    scenario = load(
        "quickstart",
        ["engine.backend=inline", "num_rounds=1", "clients_per_round=2",
         "model.warm_start.epochs=1", "client={name: mezo, local_steps: 3, eps: 0.01}"],
    )  # fmt: skip
    run = simulation.run(scenario, out=tmp_path)
    assert run.rounds[-1]["clients/failed"] == 0
    assert all("lora" in name for name in final_weights(run) if "classifier" not in name)
