"""What runs write of their insides, against numbers that a person can check."""

import math

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from fedsim import simulation
from fedsim.arrays import distance, norm
from fedsim.client import Client, ClientMethod, Update
from fedsim.seedpool import ACCUMULATORS, DRAWS, SCALARS, SEEDS, SeedPool
from fedsim.strategies.co2 import CO2
from fedsim.strategies.fedadam import FedAdam
from fedsim.strategies.fedkseed import FedKSeed
from tests.problems import tiny


class Arrow(ClientMethod):
    """Sends the same arrow of length 5 each time; those of different clients are orthogonal."""

    heeds = ("learning-rate",)  # the arrow is right at any rate

    def train(self, client: Client) -> Update:
        """3 and 4 at places of the client's own, all clients of equal weight."""
        arrays = {name: np.zeros_like(x) for name, x in client.received.items()}
        weight = arrays["weight"].reshape(-1)
        weight[2 * client.id : 2 * client.id + 2] = 3, 4
        return Update(arrays, 1)


ARROWS = {"client": {"name": "tests.test_internals:Arrow"}}
DEVICES = {"mix": [{"profile": "pixel-6", "share": 1.0}]}


def ran(tmp_path, **changes):
    """Rounds without round 0, and lines of clients."""
    run = simulation.run(tiny(**{**ARROWS, **changes}), out=tmp_path)
    return run.rounds[1:], list(run.clients)


def inside(record):
    return {k.removeprefix("agg/"): v for k, v in record.items() if k.startswith("agg/")}


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64"])
def test_norms_are_exact_and_the_same_for_any_number_of_threads(dtype):
    x = (100 * np.random.default_rng(0).normal(size=(101, 1013))).astype(dtype)
    arrays = {"x": x, "empty": np.zeros((0, 3), dtype), "scalar": np.array(3, dtype)}
    exact = math.sqrt(math.fsum([*(float(v) ** 2 for v in x.ravel()), 9.0]))
    found = set()
    for threads in (1, 2, 4):
        with threadpool_limits(threads):
            found.add(norm(arrays))
            assert distance(arrays, {k: np.zeros_like(v) for k, v in arrays.items()}) in found
    assert len(found) == 1
    assert found.pop() == pytest.approx(exact, rel=1e-7 if dtype != "float64" else 1e-14)


def test_norms_and_cosine_of_orthogonal_updates(tmp_path):
    rounds, clients = ran(tmp_path)
    assert {row["update_norm"] for row in clients} == {5.0}
    mean = 5 / math.sqrt(6)  # six updates at right angles
    expected = {"update_norm": 5, "update_norm_max": 5, "mean_norm": mean, "step_norm": mean}
    assert inside(rounds[0]) == pytest.approx({**expected, "cosine": 1 / math.sqrt(6)})


@pytest.mark.parametrize("strategy", ["fedmezo", "flwr.serverapp.strategy:FedAvg"])
def test_strategies_that_see_single_replies(tmp_path, strategy):
    """Here the server decodes; a stock strategy keeps its mean to itself, the step is known."""
    found = inside(ran(tmp_path, strategy={"name": strategy})[0][0])
    assert found["update_norm"] == 5
    assert found["step_norm"] == pytest.approx(5 / math.sqrt(6))
    assert ("cosine" in found) == (strategy == "fedmezo")


def test_equal_updates_have_cosine_one(tmp_path):
    rounds, _ = ran(tmp_path, num_clients=1, strategy={"name": "fedavgm"})
    assert rounds[1]["agg/cosine"] == pytest.approx(1)
    momentum = [r["agg/momentum_norm"] for r in rounds]
    assert momentum == pytest.approx([5, 5 * 1.9])  # 0.9 * 5 + 5
    assert [r["agg/step_norm"] for r in rounds] == pytest.approx(momentum)


def topk(feedback=None):
    return {"up": [{"name": "topk", "density": 1 / 12, "error_feedback": feedback or "none"}]}


def test_what_a_codec_loses(tmp_path):
    """Of (3, 4) the 4 is sent: 3 of 5 is lost, and what the server sees is shorter."""
    rounds, clients = ran(tmp_path, codec=topk())
    assert clients[0]["compression_error"] == pytest.approx(0.6)
    found = inside(rounds[0])
    assert found["decoded_norm"] == pytest.approx(4)
    assert found["cosine"] == pytest.approx(1 / math.sqrt(6))
    assert "residual_norm" not in found


@pytest.mark.parametrize(
    ("feedback", "residuals"),
    [
        ("ef14", [3 / 5, 4 / 5, 3 / 5]),  # of (3, 4), (6, 4), (3, 8) the larger one goes
        ("ef21", [3 / 5, 0, 0]),  # the estimate is (0, 4), then (3, 4)
    ],
)
def test_residuals_of_error_feedback(tmp_path, feedback, residuals):
    rounds, _ = ran(tmp_path, codec=topk(feedback), num_rounds=3)
    assert [r["agg/residual_norm"] for r in rounds] == pytest.approx(residuals)
    assert all("agg/compression_error" not in r for r in rounds)
    assert ("agg/cosine" in rounds[0]) == (feedback == "ef14")  # ef21 has a mean over all clients


def test_feedback_on_the_way_down(tmp_path):
    codec = {"down": [{"name": "topk", "density": 1 / 12, "error_feedback": "ef21"}]}
    rounds, _ = ran(tmp_path, codec=codec)
    first, second = (r["agg/down_residual_norm"] for r in rounds)
    assert first == 0  # clients start from the very weights
    assert second > 0


def test_weights_of_clients(tmp_path):
    found = inside(ran(tmp_path, strategy={"name": "fedau"})[0][0])
    assert [found[f"weight_{k}"] for k in ("min", "mean", "max")] == [1, 1, 1]
    corrected = inside(ran(tmp_path, strategy={"name": "mifa"})[0][0])
    assert corrected["memory_norm"] == pytest.approx(5 / math.sqrt(6))
    assert "cosine" not in corrected


def test_plans_of_lgreco(tmp_path):
    codec = {"up": [{"name": "topk", "density": 0.25}], "lgreco": {"every": 1}}
    found = inside(ran(tmp_path, codec=codec)[0][0])
    assert found["plan_min"] == found["plan_mean"] == found["plan_max"] == 0.25  # the reference


def test_asynchronous_servers_have_norms_but_no_cosine(tmp_path):
    strategy = {"name": "fedbuff", "buffer_size": 2, "server_momentum": 0.5}
    changes = {"devices": DEVICES, "clients_per_round": 2, "strategy": strategy}
    found = inside(ran(tmp_path, **changes)[0][0])
    assert found["update_norm"] == 5
    assert found["mean_norm"] == found["momentum_norm"] == found["step_norm"]
    assert "cosine" not in found


def test_moments_of_adam_and_what_co2_clips():
    adam = FedAdam(beta_1=0.5, beta_2=0.5)
    one = {"x": np.array([3.0, 4.0])}
    adam.server_update({"x": np.zeros(2)}, one, adam.state)
    notes = adam.take_notes()
    assert notes == pytest.approx({"momentum_norm": 2.5, "second_moment_norm": 0.5 * 337**0.5})
    assert adam.take_notes() == {}
    co2 = CO2(clip=3.5, delay=0, gap=1.0)
    co2.server_update({"x": np.zeros(2)}, one, co2.state)
    expected = {"staleness_gap": 1.0, "clipped_share": 0.5, "momentum_norm": math.hypot(3, 3.5)}
    assert co2.take_notes() == pytest.approx(expected)


def test_draws_of_seeds():
    pool = SeedPool(1, 20, 0.1, "gaussian", 0)
    pairs = {SEEDS: np.uint8([3, 3, 3, 7]), SCALARS: np.float32([1, 1, 1, 1])}
    assert pool.draws(pairs).nonzero()[0].tolist() == [3, 7]
    strategy = FedKSeed(num_seeds=20)
    strategy.initial = lambda: {"w": np.zeros(2, np.float32)}
    for _ in range(2):
        weights = {"w": np.zeros(2, np.float32)}
        strategy.server_update(weights, strategy.sums(pairs), strategy.state)
        notes = strategy.take_notes()
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert notes["drawn_seeds"] == pytest.approx(math.exp(entropy))
    assert notes["drawn_tenths"] == [1.0] + [0.0] * 9
    sums = {ACCUMULATORS: np.ones(20, np.float32)}  # these do not tell
    assert np.isnan(pool.draws(sums)).all()
    strategy.server_update(weights, strategy.sums(sums), strategy.state)
    assert strategy.take_notes() == {}


@pytest.mark.parametrize("pro", [False, True])
def test_seeds_in_a_run(tmp_path, pro):
    """The same draws whether blocks add them up or the server does."""
    client = {"name": "kseed", "local_steps": 4, "batch_size": 8}
    strategy = {"name": "fedkseed", "num_seeds": 64, "pro": pro}
    found = inside(ran(tmp_path, client=client, strategy=strategy, num_rounds=1)[0][0])
    assert 1 < found["drawn_seeds"] <= 24  # six clients, four steps
    assert sum(found["drawn_tenths"]) == pytest.approx(1, abs=1e-5)
    assert ("probable_seeds" in found) == pro
    assert "update_norm" not in found
    assert DRAWS not in found
