"""Strategies: contracts over all of them, limit cases, and equality with Flower's own."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower

from fedsim import registry
from fedsim.arrays import Arrays
from fedsim.engine.messages import bind_task
from fedsim.errors import PluginError
from fedsim.strategy import DeltaStrategy, is_additive, to_arrays, to_record

NAMES = [
    name
    for name in registry.available("strategies")
    if "delta" in registry.find("strategies", name).accepts
]
"""The others, whose messages are of their own, have tests of their own."""


def weights() -> Arrays:
    return {"b": np.float32([1, -2, 3]), "a": np.arange(4, dtype=np.float32).reshape(2, 2)}


def deltas(server_round: int, clients: int = 3) -> list[Arrays]:
    rng = np.random.default_rng(server_round)
    return [
        {k: rng.normal(size=x.shape).astype(np.float32) for k, x in weights().items()}
        for _ in range(clients)
    ]


class Nodes:
    """All that a strategy asks of a grid when it configures a round."""

    def get_node_ids(self) -> list[int]:
        return [10, 11, 12]


def rounds(strategy: flower.Strategy, count: int, key: str) -> Arrays:
    """Run a strategy on made-up replies: ``key`` says whether they hold weights or deltas."""
    bind_task()
    strategy.participation_rate = lambda client: 1.0
    current = to_record(weights())
    for server_round in range(1, count + 1):
        sent = list(strategy.configure_train(server_round, current, ConfigRecord(), Nodes()))
        replies = []
        for n, (message, delta) in enumerate(zip(sent, deltas(server_round), strict=True), 1):
            base = to_arrays(current)
            arrays = delta if key == "delta" else {k: base[k] + delta[k] for k in base}
            record = ArrayRecord({k: Array(v) for k, v in arrays.items()})
            metrics = MetricRecord({"num-examples": n, "train_loss": 0.5 * n, "local_steps": n})
            content = RecordDict({key: record, "metrics": metrics})
            replies.append(Message(content, reply_to=message))
        aggregated, metrics = strategy.aggregate_train(server_round, replies)
        assert aggregated is not None
        assert metrics is not None
        assert metrics["train_loss"] == pytest.approx((0.5 + 2 * 1.0 + 3 * 1.5) / 6)
        current = aggregated
    return to_arrays(current)


@pytest.mark.parametrize("name", NAMES)
def test_every_strategy_keeps_names_shapes_dtypes_and_accepts_a_zero_delta(name):
    strategy = registry.build("strategies", {"name": name})
    zero = {k: np.zeros_like(v) for k, v in weights().items()}
    updated = strategy.server_update(weights(), zero, strategy.state)
    assert list(updated) == list(weights())
    for key, value in weights().items():
        assert updated[key].shape == value.shape
        np.testing.assert_array_equal(updated[key], value)
    result = rounds(registry.build("strategies", {"name": name}), 3, "delta")
    assert all(x.dtype == np.float32 for x in result.values())
    assert is_additive(strategy) == strategy.additive


@pytest.mark.parametrize("name", NAMES)
def test_every_strategy_takes_weights_on_a_plain_flower_grid(name):
    ours = rounds(registry.build("strategies", {"name": name}), 3, "delta")
    plain = rounds(registry.build("strategies", {"name": name}), 3, "arrays")
    for key in ours:
        np.testing.assert_allclose(ours[key], plain[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("section", "stock"),
    [
        ({"name": "fedavg"}, flower.FedAvg),
        ({"name": "fedavgm", "server_momentum": 0.7, "server_learning_rate": 0.5}, flower.FedAvgM),
        ({"name": "fedadam", "eta": 0.05, "beta_1": 0.8}, flower.FedAdam),
        ({"name": "fedyogi", "eta": 0.05}, flower.FedYogi),
        ({"name": "fedadagrad", "eta": 0.05, "tau": 0.01}, flower.FedAdagrad),
    ],
)
def test_ours_equal_flowers(section, stock):
    options = {k: v for k, v in section.items() if k != "name"}
    ours = rounds(registry.build("strategies", section), 5, "delta")
    theirs = rounds(stock(**options), 5, "arrays")
    for key in ours:
        np.testing.assert_allclose(ours[key], theirs[key], rtol=1e-6, atol=1e-6)


def test_momentum_zero_is_fedavg():
    one = rounds(
        registry.build("strategies", {"name": "fedavgm", "server_momentum": 0.0}), 4, "delta"
    )
    two = rounds(registry.build("strategies", {"name": "fedavg"}), 4, "delta")
    for key in one:
        np.testing.assert_array_equal(one[key], two[key])


def test_constant_delta_gives_the_geometric_sum_of_heavy_ball():
    strategy = registry.build("strategies", {"name": "fedavgm", "server_momentum": 0.5})
    w: Arrays = {"x": np.zeros(1)}
    for _ in range(3):
        w = strategy.server_update(w, {"x": np.ones(1)}, strategy.state)
    assert w["x"].tolist() == [1 + 1.5 + 1.75]


def test_cohorts_are_a_function_of_seed_and_round():
    strategy = registry.build("strategies", {"name": "fedavg"})
    strategy.fraction_train = 2 / 3
    draw = [strategy._sample("cohort", r, 2 / 3, Nodes()) for r in range(1, 40)]
    assert draw == [strategy._sample("cohort", r, 2 / 3, Nodes()) for r in range(1, 40)]
    assert all(len(set(c)) == 2 for c in draw)
    assert {n for c in draw for n in c} == {10, 11, 12}


def test_all_failed_gives_nothing():
    assert isinstance(strategy := registry.build("strategies", {"name": "fedavg"}), DeltaStrategy)
    assert strategy.aggregate_train(1, []) == (None, None)
    assert strategy.aggregate_evaluate(1, []) is None


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        (None, "new weights: NoneType"),
        ({"b": [1.0], "a": [2.0]}, "new weights: dict of list"),
        ({"c": np.zeros(3)}, "other names"),
        ({k: np.zeros(1) for k in weights()}, "has shape"),
    ],
)
def test_an_update_that_is_no_weights_names_the_method(returned, says):
    class Forgetful(DeltaStrategy):
        def server_update(self, weights, delta, state):
            return returned

    with pytest.raises(PluginError, match=says) as caught:
        rounds(Forgetful(), 1, "delta")
    assert "Forgetful.server_update does not return new weights" in str(caught.value)
    assert "A dict of arrays" in str(caught.value)
