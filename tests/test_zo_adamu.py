"""ZO-AdaMU: its schedule, limit cases, momentum that is kept, bounds, resume."""

import numpy as np
import pytest
import torch

from fedsim import registry, simulation
from fedsim.arrays import Arrays
from fedsim.clients._zeroth import forward_only, memory
from fedsim.clients.zo_adamu import PHI, ZOAdaMU, _Direction, annealed
from fedsim.directions import Directions
from fedsim.errors import PluginError
from tests.engine.runs import stopped
from tests.problems import tiny
from tests.test_clients import train, worker
from tests.test_fedkseed import client_of
from tests.test_zeroth_order import mezo


@pytest.mark.parametrize(
    ("phi", "late", "published"), [(0.1, 0.1312, 0.4729), (1.0, 0.0101, 0.1464), (1.5, 0.0119, 0)]
)
def test_values_of_the_schedule(phi, late, published):
    assert annealed(16_000, 1024, 16_000, 20_000, phi) == pytest.approx(late, abs=5e-5)
    assert annealed(2 / 3, 1 / 6, 2 / 3, 1, phi) == pytest.approx(published, abs=5e-5)
    assert annealed(1, 1 / 6, 2 / 3, 1, phi) == annealed(2 / 3, 1 / 6, 2 / 3, 1, phi)
    assert annealed(0.1, 1 / 6, 2 / 3, 1, phi) == 1


def test_figure_and_text_swap_alpha_and_beta1():
    figure = registry.build("clients", {"name": "zo_adamu"})
    text = registry.build("clients", {"name": "zo_adamu", "schedule": "text"})
    assert figure.anneal(10, 600) == text.anneal(10, 600) == (1, 1, 1)
    a, b, c = figure.anneal(300, 600)
    assert text.anneal(300, 600) == (b, a, c)
    assert PHI["figure"][2] == PHI["text"][2]


def test_phi_can_be_ones_own_unless_the_schedule_has_a_pole():
    own = registry.build("clients", {"name": "zo_adamu", "schedule": [0.1, 1.0, 1.5]})
    figure = registry.build("clients", {"name": "zo_adamu"})
    assert own.anneal(300, 600) == figure.anneal(300, 600)
    pole = {"name": "zo_adamu", "schedule": [0.1, 1.0, 3.0]}
    with pytest.raises(PluginError, match=r"phi = 3 .* a pole before step T2"):
        registry.build("clients", pole)
    registry.build("clients", {**pole, "settled": 0.7})
    with pytest.raises(PluginError, match=r"phi = 1\.5"):
        registry.build("clients", {"name": "zo_adamu", "warmup": 0.1, "settled": 0.3})


ADAMU = {"name": "zo_adamu", "learning_rate": 0.02, "batch_size": 1000, "local_steps": 1}


def test_before_t1_a_step_is_the_slope_times_the_sign():
    result = train(worker(client=ADAMU), 0)
    (report,) = result.reports
    size = report.metrics["mean_abs_scalar"]
    seed = int(torch.randint(2**62, (), generator=_generator_after_batches()).item())
    z = Directions(15).values(seed)
    down = {"name": "sgd", "learning_rate": 1.0, "batch_size": 1000, "local_steps": 1}
    gradient = -flat(train(worker(client=down), 0).mean)
    assert abs(gradient @ z) == pytest.approx(size, rel=1e-2)
    g = size * np.sign(gradient @ z)
    inner = np.abs(z) > 0.05  # sigma matters elsewhere
    np.testing.assert_allclose(flat(result.mean)[inner], (-0.02 * g * np.sign(z))[inner], atol=1e-5)


def flat(arrays: Arrays) -> np.ndarray:
    return np.concatenate([x.ravel() for x in arrays.values()])


def _generator_after_batches() -> torch.Generator:
    of = worker(client=ADAMU)
    generator = of.seeds.torch("client", 1, 0)
    torch.randperm(20, generator=generator)
    return generator


def test_after_t1_a_step_is_that_of_the_formulas():
    """Against float64, on a quadratic loss whose slope along p is negative."""
    values = alpha, beta1, beta2 = 0.6, 0.3, 0.2
    rng = np.random.default_rng(0)
    target, m = rng.normal(size=50) * -5, rng.normal(size=50).astype(np.float32)
    module = torch.nn.ParameterDict({"theta": torch.nn.Parameter(torch.zeros(50))})
    goal = torch.tensor(target, dtype=torch.float32)
    client = client_of(module, lambda: (module["theta"] - goal).square().mean())

    dot = np.sqrt(alpha) * Directions(50).values(77).astype(np.float64)
    ddot = m + np.sqrt(1 - alpha) * Directions(50, stream=1).values(77).astype(np.float64)
    p = beta1 * dot + (1 - beta1) * ddot
    v = beta2 * dot**2 + (1 - beta2) * ddot**2
    g = -2 / 50 * target @ p
    assert g < -0.1

    method = ZOAdaMU(learning_rate=0.01, eps=0.1)
    direction = _Direction(Directions(50), 77, m, values)
    with forward_only(client):
        method._step(client, {}, memory(client), direction)
    theta = module["theta"].detach().numpy()
    np.testing.assert_allclose(theta, -0.01 * g * p / np.sqrt(v + 1e-8), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(direction.m, -p, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("values", [(1.0, 1.0, 1.0), (0.5, 0.3, 0.2)])
def test_probes_of_dropped_steps_leave_no_more_than_their_rounding(values):
    torch.manual_seed(0)
    module = torch.nn.Linear(300, 200, bias=False)
    client = client_of(module, lambda: module.weight.square().mean())
    before = module.weight.detach().numpy().copy()
    m = Directions(before.size).values(5)
    method = ZOAdaMU(eps=1e-3, loss_clip=1e-30)
    with forward_only(client):
        for seed in range(200):
            direction = _Direction(Directions(before.size), seed, m, values)
            _, g = method._step(client, {}, memory(client), direction)
            assert not g
    error = np.abs(module.weight.detach().numpy() - before)
    assert error.max() > 0
    assert np.linalg.norm(error) / np.linalg.norm(before) < 2e-6


def test_without_momentum_and_norm_it_is_mezo():
    plain = {**ADAMU, "normalise": False, "warmup": 1.0, "local_steps": 20}
    ours = train(worker(client=plain), 0).mean
    theirs = train(worker(client=mezo(local_steps=20)), 0).mean
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=2e-5)


def test_momentum_matters_and_is_forgotten_or_kept(tmp_path):
    plan = {"num_rounds": 6, "client": {**ADAMU, "local_steps": 8, "warmup": 0.1}}
    reset = simulation.run(tiny(**plan), out=tmp_path)
    kept = simulation.run(
        tiny(**{**plan, "client": {**plan["client"], "momentum": "keep"}}), out=tmp_path
    )
    never = simulation.run(
        tiny(**{**plan, "client": {**plan["client"], "warmup": 1.0}}), out=tmp_path
    )
    digests = {r.summary["weights_sha256"] for r in (reset, kept, never)}
    assert len(digests) == 3
    for run in (reset, kept):
        assert run.rounds[-1]["eval/loss"] < run.rounds[0]["eval/loss"]


def test_kept_momentum_survives_resume(tmp_path):
    client = {**ADAMU, "local_steps": 5, "momentum": "keep", "warmup": 0.0}
    scenario = tiny(client=client, num_rounds=5, clients_per_round=3, checkpoint={"every": 1})
    whole = simulation.run(scenario, out=tmp_path / "whole")
    resumed = simulation.resume(stopped(scenario, tmp_path, 3))
    assert resumed.summary["weights_sha256"] == whole.summary["weights_sha256"]


def test_the_ratio_can_be_bounded():
    method = registry.build("clients", {"name": "zo_adamu", "max_ratio": 2.0})
    p, v = np.float32([1, -1, 0.5]), np.float32([1e-6, 1e-6, 1])
    np.testing.assert_allclose(method._update(p, v), [2, -2, 0.5], rtol=1e-6)


def test_steps_are_counted_over_the_run_however_often_a_client_takes_part(tmp_path, monkeypatch):
    """12 clients, one a round: T1 is after half of all rounds, not of a client's own steps."""
    steps: dict[str, list[int]] = {"reset": [], "keep": []}
    anneal = ZOAdaMU.anneal

    def noted(self, step, total):
        assert total == 48
        steps[self.momentum].append(step)
        return anneal(self, step, total)

    monkeypatch.setattr(ZOAdaMU, "anneal", noted)
    for momentum in steps:
        client = {**ADAMU, "local_steps": 2, "warmup": 0.5, "momentum": momentum}
        cohort = {"num_clients": 12, "clients_per_round": 1, "num_rounds": 24}
        simulation.run(tiny(**cohort, client=client), out=tmp_path)
    assert steps["reset"] == list(range(1, 48, 2))  # m is 0 in a round's first step
    assert set(steps["reset"]) < set(steps["keep"]) <= set(range(48))
