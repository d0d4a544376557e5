"""Client methods: contracts over all of them, closed forms, limit cases."""

import random

import numpy as np
import pytest
import torch

from fedsim import registry, simulation, wire
from fedsim.data import partition
from fedsim.engine.blocks import Block, BlockResult, Broadcast
from fedsim.engine.gradients import mean_gradient
from fedsim.engine.worker import Recipe, Worker
from fedsim.errors import PluginError
from fedsim.task import num_rows
from tests.problems import tiny

NAMES = list(registry.available("clients"))
STRATEGIES = {"seeds": "fedkseed", "projection": "ferret"}
"""Who says what to clients of a kind with messages of its own."""


def worker(**changes) -> Worker:
    scenario = tiny(**changes)
    split = partition.make(scenario, scenario.seed)
    return Worker(Recipe(scenario, split.ownership, scenario.seed))


def broadcast(of: Worker) -> Broadcast:
    if not of._packed:
        payload = of.codecs.down.encode(of.like, {})
        return Broadcast("b", np.frombuffer(payload.data, np.uint8), payload.parts)
    strategy = registry.build("strategies", {"name": STRATEGIES[of.method.sends]})
    strategy.initial, strategy._weights = lambda: of.like, of.like
    payload = wire.pack(strategy.broadcasts(1, [0])[0])
    return Broadcast("b", np.frombuffer(payload.data, np.uint8), payload.parts, packed=True)


def train(of: Worker, client: int, config=None, server_round: int = 1):
    return worked(of, Block(server_round, (client,), (None,), config or {}, reduce=True))


def worked(of: Worker, block: Block) -> BlockResult:
    (result,) = of.work([block], "train", broadcast(of), of.like if of._packed else None)
    return result


@pytest.mark.parametrize("name", NAMES)
def test_every_client_method_lowers_its_loss_and_repeats_exactly(name):
    one = train(worker(client={"name": name}), 1)
    again = train(worker(client={"name": name}), 1)
    (report,) = one.reports
    assert report.status == "ok", report.error
    assert report.num_examples == 20
    assert any(np.any(x) for x in one.mean.values())
    for key in one.mean:
        np.testing.assert_array_equal(one.mean[key], again.mean[key])


@pytest.mark.parametrize("name", NAMES)
def test_no_client_sees_what_another_did_before(name):
    both = worker(client={"name": name})
    train(both, 0)
    second = train(both, 1).mean
    alone = train(worker(client={"name": name}), 1).mean
    for key in second:
        np.testing.assert_array_equal(second[key], alone[key])


FULL = {"name": "sgd", "learning_rate": 0.1, "local_steps": 1, "batch_size": 1000}


def test_work_leaves_the_global_generators_as_they_were():
    of = worker()
    draws = (random.random, np.random.random, lambda: torch.rand(()).item())
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    undisturbed = [draw() for draw in draws]
    random.setstate(before[0])
    np.random.set_state(before[1])  # noqa: NPY002
    torch.set_rng_state(before[2])
    train(of, 1)
    assert [draw() for draw in draws] == undisturbed


def test_the_mean_gradient_is_what_a_full_step_goes_down():
    of = worker(client=FULL)
    moved = train(of, 1).mean
    view = of._client(1, Block(1, (1,), (None,), {}, reduce=True), of.like, {})
    gradient = mean_gradient(view, of.like)
    for key in moved:
        np.testing.assert_allclose(moved[key], -0.1 * gradient[key], rtol=1e-5, atol=1e-7)


def test_what_error_feedback_asks_of_the_loss_is_the_devices_work():
    feedback = {"name": "ef21w", "power_iterations": 3}
    up = [{"name": "topk", "density": 0.2, "error_feedback": feedback}]
    devices = {"mix": [{"profile": "pixel-6", "share": 1}]}
    block = Block(1, (1,), (None,), {}, reduce=True, budgets=(2**30,))
    workers = [worker(client=FULL, devices=devices, codec={"up": codec}) for codec in ([], up)]
    plain, measuring = (worked(of, block).reports[0] for of in workers)
    assert measuring.status == "ok", measuring.error
    assert measuring.spent.flops == plain.spent.flops * (1 + 2 * 3)


def centralised(steps: int, rate: float) -> dict[str, np.ndarray]:
    """Plain gradient descent on all rows, from the same start."""
    reference = worker(num_clients=1)
    data = reference.task.client_data(0)
    model = reference.task.model
    model.train()
    for _ in range(steps):
        model.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(data["features"]), data["labels"])
        loss.backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= rate * p.grad
    return reference.task.trainable()


def test_one_client_with_full_batches_is_centralised_gradient_descent(tmp_path):
    client = {"name": "sgd", "learning_rate": 0.2, "batch_size": 1000, "local_epochs": 1}
    run = simulation.run(tiny(num_clients=1, num_rounds=5, client=client), out=tmp_path)
    other = worker(num_clients=1)
    other.task.load(centralised(5, 0.2))
    totals = other.task.evaluate(other.task.test_data(0, 1), 64)
    assert run.rounds[-1]["eval/loss"] == pytest.approx(other.metrics(totals)["loss"], rel=1e-6)


def test_fedprox_with_mu_zero_is_sgd_and_a_large_mu_stays_near():
    plain = train(worker(client={"name": "sgd"}), 2).mean
    zero = train(worker(client={"name": "fedprox", "proximal_mu": 0.0}), 2).mean
    far = {"name": "fedprox", "proximal_mu": 5.0, "local_epochs": 4}
    strong = train(worker(client=far), 2).mean
    weak = train(worker(client={**far, "proximal_mu": 0.1}), 2).mean
    for key in plain:
        np.testing.assert_allclose(plain[key], zero[key], atol=1e-7)
        assert np.linalg.norm(strong[key]) < np.linalg.norm(weak[key])


def test_flowers_fedprox_strategy_sets_mu():
    large = train(worker(client={"name": "fedprox"}), 2, {"proximal-mu": 5.0}).mean
    own = train(worker(client={"name": "fedprox", "proximal_mu": 5.0}), 2).mean
    for key in own:
        np.testing.assert_array_equal(large[key], own[key])


def test_steps_epochs_and_batches():
    plan = worker()
    view = plan._client(0, Block(1, (0,), (None,), {}, True), plan.like, {})
    sizes = [num_rows(b) for b in view.batches(8, epochs=2)]
    assert sizes == [8, 8, 4, 8, 8, 4]
    assert len(list(view.batches(8, steps=4))) == 4
    first, second = (next(iter(view.batches(20))) for _ in range(2))
    assert not torch.equal(first["labels"], second["labels"])


def test_learning_rate_schedules():
    make = {"name": "sgd", "learning_rate": 1.0, "final_learning_rate": 0.2}
    for schedule, middle in (("constant", 1.0), ("linear", 0.6), ("cosine", 0.6)):
        method = registry.build("clients", {**make, "learning_rate_schedule": schedule})
        assert method.rate(1, 11) == pytest.approx(1.0)
        assert method.rate(6, 11) == pytest.approx(middle)
        assert method.rate(11, 11) == pytest.approx(1.0 if schedule == "constant" else 0.2)


def test_gradient_clipping_bounds_a_step():
    client = {"name": "sgd", "learning_rate": 1.0, "local_steps": 1, "max_grad_norm": 0.01}
    mean = train(worker(client=client), 0).mean
    norm = np.sqrt(sum(float((x**2).sum()) for x in mean.values()))
    assert norm == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW", "Adagrad", "RMSprop"])
def test_optimizers_by_name(optimizer):
    client = {"name": "sgd", "optimizer": optimizer, "learning_rate": 0.01}
    assert train(worker(client=client), 0).reports[0].status == "ok"


def test_unknown_optimizers_and_their_options_are_refused():
    with pytest.raises(PluginError, match="Did you mean 'AdamW'"):
        registry.build("clients", {"name": "sgd", "optimizer": "AdamWW"})
    with pytest.raises(PluginError, match="has no option 'momentun'"):
        registry.build("clients", {"name": "sgd", "optimizer_options": {"momentun": 0.9}})


def test_plain_sgd_has_the_bits_of_torchs():
    plain = train(worker(client={"name": "sgd", "learning_rate": 0.3}), 1).mean
    options = {"weight_decay": 0.0, "momentum": 0.0}
    torchs = train(
        worker(client={"name": "sgd", "learning_rate": 0.3, "optimizer_options": options}), 1
    ).mean
    for key in plain:
        np.testing.assert_array_equal(plain[key], torchs[key])


def test_vectorised_clients_train_as_each_alone():
    both = {"batch_size": 8, "local_epochs": 2, "learning_rate": 0.3}
    clients = (0, 1, 2, 3)
    means, reports = [], []
    for name in ("sgd", "vmap_sgd"):
        of = worker(client={"name": name, **both})
        block = Block(1, clients, (None,) * 4, {}, reduce=True)
        result = worked(of, block)
        means.append(result.mean)
        reports.append(result.reports)
    for one, many in zip(*reports, strict=True):
        assert many.metrics["train_loss"] == pytest.approx(one.metrics["train_loss"], rel=1e-5)
    for key in means[0]:
        np.testing.assert_allclose(means[1][key], means[0][key], atol=1e-6)


def test_a_block_of_unlike_clients_is_trained_one_by_one():
    unlike = {"name": "dirichlet", "alpha": 0.5, "partition_by": "label", "min_partition_size": 2}
    results = []
    for name in ("sgd", "vmap_sgd"):
        of = worker(client={"name": name}, data={"partitioner": unlike})
        results.append(worked(of, Block(1, (0, 1, 2), (None,) * 3, {}, reduce=True)))
    assert len({report.num_examples for report in results[0].reports}) > 1
    for key in results[0].mean:
        np.testing.assert_array_equal(results[0].mean[key], results[1].mean[key])


def test_a_failure_of_a_block_is_each_clients(monkeypatch):
    of = worker(client={"name": "vmap_sgd"})
    monkeypatch.setattr(of.method, "train_many", lambda clients: 1 / 0)
    result = worked(of, Block(1, (0, 1), (None, None), {}, reduce=True))
    assert [report.status for report in result.reports] == ["failed", "failed"]
    assert "client 1, round 1, train: ZeroDivisionError" in result.reports[1].error


def test_vectorised_clients_take_plain_steps_only():
    with pytest.raises(PluginError, match="plain SGD"):
        registry.build("clients", {"name": "vmap_sgd", "optimizer": "AdamW"})
