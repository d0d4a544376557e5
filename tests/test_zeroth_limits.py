"""Zeroth-order methods against each other, against forward-mode derivatives, and over workers."""

import numpy as np
import pytest
import torch

from fedsim import simulation
from fedsim.clients._zeroth import Walker, forward_only, slope
from fedsim.clients.kseed import KSeed
from fedsim.clients.mezo import MeZO
from fedsim.directions import Directions
from tests.engine.runs import comparable
from tests.problems import perceptron, tiny
from tests.test_fedkseed import client_of, final_weights


def test_a_pool_of_fresh_seeds_is_mezo(tmp_path, monkeypatch):
    seeds: list[int] = []
    choices = KSeed._choices

    def noted(self, client, pool):
        chosen = choices(self, client, pool)
        seeds.extend(pool.seeds[k] for k in chosen)
        return chosen

    monkeypatch.setattr(KSeed, "_choices", noted)
    monkeypatch.setattr(MeZO, "seed", lambda self, client, number: seeds[number])
    plan = {"num_clients": 1, "num_rounds": 1}
    local = {"local_steps": 20, "batch_size": 1000, "eps": 0.01}
    strategy = {"name": "fedkseed", "num_seeds": 65_536, "learning_rate": 0.02}
    pooled = tiny(**plan, client={"name": "kseed", **local}, strategy=strategy)
    fresh = tiny(**plan, client={"name": "mezo", "learning_rate": 0.02, **local})
    one, other = (final_weights(simulation.run(s, out=tmp_path)) for s in (pooled, fresh))
    assert len(set(seeds)) == 20
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is:DeprecationWarning")  # by torch.func
def test_short_probes_give_the_forward_mode_derivative():
    """The error falls with eps^2."""
    torch.manual_seed(0)
    module = perceptron().double()
    x, parameters = torch.randn(5, 4).double(), dict(module.named_parameters())

    def loss(values):
        return torch.func.functional_call(module, values, x).square().mean()

    sizes = [p.numel() for p in parameters.values()]
    z = torch.tensor(Directions(sum(sizes)).values(7)).double().split(sizes)
    along = {n: part.view_as(p) for (n, p), part in zip(parameters.items(), z, strict=True)}
    exact = torch.func.jvp(loss, ({n: p.detach() for n, p in parameters.items()},), (along,))[1]
    errors = []
    with forward_only(client := client_of(module, lambda: loss(parameters))):
        for eps in (2**-4, 2**-7, 2**-10):
            walker = Walker(client, "gaussian", eps, exact=True)
            errors.append(slope(walker.probe({}, 7), eps, None) - exact.item())
            walker.settle()
    assert abs(errors[-1]) < 1e-4 * abs(exact.item())
    assert errors[0] / errors[1] == pytest.approx(64, rel=0.2)
    assert errors[1] / errors[2] == pytest.approx(64, rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mezo", "fedmezo", "zo_adamu"])
def test_one_process_and_two_workers_give_the_same_bits(tmp_path, name):
    plan = {"client": {"name": name, "local_steps": 4, "batch_size": 8}, "num_rounds": 3}
    plan["strategy"] = {"name": "fedmezo", "learning_rate": 0.02, "spread": 0.01}
    engines = ({"backend": "inline"}, {"backend": "ray", "workers": 2})
    runs = [simulation.run(tiny(**plan, engine=engine), out=tmp_path) for engine in engines]
    assert len({run.summary["weights_sha256"] for run in runs}) == 1
    assert comparable(runs[0]) == comparable(runs[1])
