"""Strategies without rounds: the published numbers, fixed points, limit cases, Flower's grid."""

import numpy as np
import pytest
from flwr.app import Error, Message, MetricRecord, RecordDict

from fedsim import registry
from fedsim.arrays import Arrays
from fedsim.engine.messages import bind_task
from fedsim.errors import PluginError, RunError
from fedsim.event_strategy import EventStrategy, with_base
from fedsim.strategy import DELTA, to_arrays, to_record

B = (0.0, 2.0)
"""Two workers with f = (x - b)^2 / 2."""
RATE = 0.1


def build(name: str, x: float = 0.0, num_clients: int = 2, **options) -> EventStrategy:
    bind_task()
    strategy = registry.build("strategies", {"name": name, **options})
    strategy.num_clients = num_clients
    strategy.begin(to_record({"x": np.float64([x])}))
    return strategy


def position(strategy: EventStrategy) -> float:
    return float(strategy._weights["x"][0])


def arrive(strategy: EventStrategy, base: float, delta: float, client=0, staleness=0, steps=1):
    """One answer with a delta from the given base."""
    strategy.in_flight += 1
    message = Message(RecordDict({}), dst_node_id=client, message_type="train")
    numbers = MetricRecord({"num-examples": 1, "local_steps": steps})
    content = RecordDict({DELTA: to_record({"x": np.float64([delta])}), "metrics": numbers})
    reply = with_base(Message(content, reply_to=message), {"x": np.float64([base])})
    return strategy.receive(reply, staleness)


def work(strategy: EventStrategy, client: int, steps: int = 1) -> None:
    """A fresh answer of one of the two workers after plain gradient steps."""
    x = base = position(strategy)
    for _ in range(steps):
        x -= RATE * (x - B[client])
    arrive(strategy, base, x - base, client, steps=steps)


@pytest.mark.parametrize("name", ["afa_cd", "afa_cs"])
def test_normalised_pushes_have_the_published_fixed_point(name):
    strategy = build(name, buffer_size=2, server_learning_rate=0.5)
    for _ in range(600):
        base = position(strategy)
        for client, steps in ((0, 1), (1, 4)):
            x = base
            for _ in range(steps):
                x -= RATE * (x - B[client])
            arrive(strategy, base, x - base, client, steps=steps)
    assert position(strategy) == pytest.approx(0.9245866380, abs=1e-9)


def test_sums_of_gradients_would_favour_those_who_work_more():
    strategy = build("fedbuff", buffer_size=2)  # deltas as they are
    for _ in range(600):
        base = position(strategy)
        for client, steps in ((0, 1), (1, 4)):
            x = base
            for _ in range(steps):
                x -= RATE * (x - B[client])
            arrive(strategy, base, x - base, client)
    assert position(strategy) == pytest.approx(1.5494480739, abs=1e-9)


def cycle_mean(name: str) -> float:
    """Worker 0 nine times, then worker 1 once, with steps of 0.05, over and over."""
    strategy = build(name, server_learning_rate=0.05 / RATE)
    means = []
    for _ in range(100):
        places = []
        for client in (0,) * 9 + (1,):
            work(strategy, client)
            places.append(position(strategy))
        means.append(np.mean(places))
    return float(means[-1])


def test_busy_workers_bias_cd_but_not_cs():
    assert cycle_mean("afa_cd") == pytest.approx(0.2, abs=1e-3)
    assert cycle_mean("afa_cs") == pytest.approx(1.0, abs=1e-9)


def test_fedasync_has_the_published_steps():
    strategy = build("fedasync", x=4.0, alpha=0.6, staleness="polynomial", a=0.5)
    expected = (1.6, 1.7697056275, 1.7697056275 + 0.3 * (2 - 1.7697056275))
    for (tau, model), x in zip(((0, 0), (1, 2), (3, 2)), expected, strict=True):
        arrive(strategy, 1.0, model - 1.0, staleness=tau)
        assert position(strategy) == pytest.approx(x, abs=1e-10)


def test_staleness_functions():
    assert build("fedasync", staleness="polynomial").weight(3) == 0.5
    assert build("fedasync", staleness="hinge").weight(6) == 1 / 21
    assert build("fedasync", staleness="hinge").weight(4) == 1.0
    assert build("fedasync", staleness="constant").weight(99) == 1.0


@pytest.mark.parametrize(("normaliser", "x"), [("buffer_size", 4.0), ("weights", 11 / 3)])
def test_fedbuff_has_the_published_step(normaliser, x):
    strategy = build("fedbuff", x=5.0, buffer_size=2, normaliser=normaliser)
    assert arrive(strategy, 5.0, -1.0, staleness=0) is None
    arrive(strategy, 6.0, -2.0, staleness=3)
    assert position(strategy) == pytest.approx(x)
    assert strategy.version == 1


def test_fedbuff_momentum_is_heavy_ball():
    strategy = build("fedbuff", buffer_size=1, server_momentum=0.5)
    for _ in range(3):
        arrive(strategy, 0.0, 1.0)
    assert position(strategy) == 1 + 1.5 + 1.75


def test_fedasync_with_one_worker_and_full_mixing_is_local_sgd():
    strategy, x = build("fedasync", x=3.0, alpha=1.0), 3.0
    for _ in range(5):
        work(strategy, 1, steps=2)
        x = 2.0 + (x - 2.0) * 0.9**2
    assert position(strategy) == pytest.approx(x)


def test_fedbuff_of_one_without_weights_is_asynchronous_sgd():
    strategy = build("fedbuff", buffer_size=1, staleness_exponent=0.0)
    arrive(strategy, 0.0, 1.0, staleness=7)
    arrive(strategy, 9.0, 0.5, staleness=2)
    assert position(strategy) == 1.5


def test_cs_with_everyone_in_every_update_is_cd():
    one, two = (build(n, buffer_size=2, server_learning_rate=3.0) for n in ("afa_cd", "afa_cs"))
    for _ in range(10):
        for strategy in (one, two):
            base = position(strategy)
            for client in (0, 1):
                arrive(strategy, base, 0.1 * (B[client] - base), client, steps=2)
    assert position(one) == pytest.approx(position(two))


def test_cd_of_the_whole_cohort_with_equal_steps_is_fedavg():
    strategy, average = build("afa_cd", buffer_size=2, server_learning_rate=4.0), 0.0
    for _ in range(3):
        base = position(strategy)
        for client in (0, 1):
            arrive(strategy, base, 0.3 * (B[client] - base), client, steps=4)
        average += 0.3 * (1.0 - average)
    assert position(strategy) == pytest.approx(average)


@pytest.mark.parametrize("name", ["fedasync", "fedbuff", "afa_cd", "afa_cs"])
def test_old_and_failed_answers_change_nothing(name):
    strategy = build(name, x=1.0, max_staleness=2)
    arrive(strategy, 0.0, 1.0, staleness=3)
    message = Message(RecordDict({}), dst_node_id=0, message_type="train")
    strategy.in_flight += 1
    assert strategy.receive(Message(Error(code=2, reason="gone"), reply_to=message), 0) is None
    assert (position(strategy), strategy.version, strategy.in_flight) == (1.0, 0, 0)


@pytest.mark.parametrize(
    "section",
    [
        {"name": "fedasync", "a": -1},
        {"name": "fedasync", "alpha": 0},
        {"name": "fedasync", "alpha": 1.5},
        {"name": "fedasync", "staleness": "linear"},
        {"name": "fedbuff", "staleness_exponent": -0.5},
        {"name": "fedbuff", "buffer_size": 0},
        {"name": "fedbuff", "max_staleness": -1},
        {"name": "afa_cd", "server_learning_rate": 0},
    ],
)
def test_impossible_options_are_refused(section):
    with pytest.raises(PluginError) as caught:
        registry.build("strategies", section)
    assert caught.value.key


def test_clients_must_report_their_steps():
    strategy = build("afa_cd")
    message = Message(RecordDict({}), dst_node_id=0, message_type="train")
    numbers = MetricRecord({"num-examples": 1})
    content = RecordDict({DELTA: to_record({"x": np.zeros(1)}), "metrics": numbers})
    reply = with_base(Message(content, reply_to=message), {"x": np.zeros(1)})
    with pytest.raises(PluginError, match="local_steps"):
        strategy.receive(reply, 0)


def test_dispatch_keeps_as_many_at_work_as_wanted():
    strategy = build("fedasync", num_clients=8)
    strategy.concurrency = 4
    first = [m.metadata.dst_node_id for m in strategy.dispatch(0.0, range(8))]
    assert len(set(first)) == 4
    assert not strategy.dispatch(0.0, [n for n in range(8) if n not in first])
    arrive(strategy, 0.0, 1.0)
    strategy.in_flight -= 1
    idle = [n for n in range(8) if n not in first[1:]]
    (again,) = strategy.dispatch(1.0, idle)
    assert again.metadata.dst_node_id in idle
    assert to_arrays(again.content["arrays"])["x"] == position(strategy)


class Pulling:
    """A Flower grid on which node n answers at every (n + 1)th look."""

    def __init__(self, weights: Arrays) -> None:
        self.like, self.waiting, self.looks, self.silent = weights, {}, 0, False

    def get_node_ids(self):
        return [0, 1, 2]

    def push_messages(self, messages):
        names = []
        for message in messages:
            names.append(f"m{len(self.waiting)}-{self.looks}-{message.metadata.dst_node_id}")
            self.waiting[names[-1]] = message
        return names

    def pull_messages(self, names):
        self.looks += 1
        replies = []
        for name in names:
            message = self.waiting[name]
            node = message.metadata.dst_node_id
            if self.looks % (node + 1) == 0 and not self.silent:
                del self.waiting[name]
                model = {k: x + 1 for k, x in to_arrays(message.content["arrays"]).items()}
                numbers = MetricRecord({"num-examples": 1, "local_steps": 1})
                content = RecordDict({"arrays": to_record(model), "metrics": numbers})
                replies.append(Message(content, reply_to=message))
        return replies


@pytest.mark.parametrize("name", ["fedasync", "fedbuff", "afa_cd", "afa_cs"])
def test_start_works_on_a_plain_flower_grid(name):
    bind_task()
    strategy = registry.build("strategies", {"name": name})
    start = {"x": np.float64([0.0])}
    seen = []
    result = strategy.start(
        Pulling(start),
        to_record(start),
        num_rounds=4,
        evaluate_fn=lambda version, arrays: seen.append(version),
    )
    assert strategy.version == 4
    assert seen == [1, 2, 3, 4]
    assert to_arrays(result.arrays)["x"][0] > 0.5


def test_start_gives_up_when_nobody_answers(monkeypatch):
    bind_task()
    strategy = registry.build("strategies", {"name": "fedasync"})
    grid = Pulling({"x": np.zeros(1)})
    grid.silent = True
    with pytest.raises(RunError, match="no client answered"):
        strategy.start(grid, to_record({"x": np.zeros(1)}), num_rounds=1, timeout=0.01)
