"""FedKSeed and its client: the specification's numbers, replay, bytes, bad input, equal bits."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from flwr.app import Message, MetricRecord, RecordDict

from fedsim import registry, simulation, wire
from fedsim.checkpoint import Checkpoints
from fedsim.client import Client
from fedsim.clients._zeroth import Walker, forward_only, slope
from fedsim.clients.kseed import KSeed
from fedsim.directions import Directions
from fedsim.engine.inline import InlineGrid
from fedsim.errors import PluginError
from fedsim.event_strategy import with_base
from fedsim.seedpool import SeedPool, fingerprint
from fedsim.seeds import Seeds
from fedsim.strategy import DELTA, to_arrays, to_record
from tests.engine.runs import comparable, recipe, stopped
from tests.problems import tiny
from tests.test_clients import train as trained
from tests.test_clients import worker

CLIENT = {"name": "kseed", "local_steps": 12, "batch_size": 8}
STRATEGY = {"name": "fedkseed", "num_seeds": 64, "learning_rate": 0.02}
KSEED = {"client": CLIENT, "strategy": STRATEGY}
START = {"w": np.zeros((20, 30), np.float32), "b": np.ones(7, np.float32)}


def pool(size: int = 64, start=START, **changes) -> SeedPool:
    options = {"master": 5, "size": size, "eta": 0.1, "kind": "gaussian"}
    return SeedPool(**{**options, "start": fingerprint(start), **changes})


def client_of(module: torch.nn.Module, loss) -> Client:
    """A client whose loss is a function of the parameters alone."""
    parameters = dict(module.named_parameters())
    task = SimpleNamespace(parameters=parameters, model=module, loss=lambda batch: loss())
    return Client(0, 1, 1, task, {}, {}, {}, torch.Generator().manual_seed(0))  # type: ignore[arg-type]


def build(**options):
    strategy = registry.build("strategies", {**STRATEGY, **options})
    strategy.initial = lambda: START
    strategy._weights = START
    return strategy


def reply(update, num_examples: int = 1) -> SimpleNamespace:
    content = RecordDict(
        {DELTA: to_record(update), "m": MetricRecord({"num-examples": num_examples})}
    )
    sender = SimpleNamespace(src_node_id=0)
    return SimpleNamespace(content=content, metadata=sender, has_error=lambda: False)


def pairs(seeds, scalars):
    return {"seeds": np.uint16(seeds), "scalars": np.float32(scalars)}


# -- the specification's example ---------------------------------------------------------------


def test_the_specifications_example_of_two_seeds(monkeypatch):
    """d = 2, loss w1 + 3 w2: g is -5 along (1, -2) and 3.5 along (0.5, 1), at any point."""
    z = {1: np.float32([1, -2]), 2: np.float32([0.5, 1])}

    def accumulate(self, x, seeds, scales):
        for seed, scale in zip(seeds, scales, strict=True):
            x["weight"][...] += np.float32(scale) * z[seed]

    monkeypatch.setattr(Directions, "accumulate", accumulate)
    module = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.zeros_(module.weight)
    client = client_of(module, lambda: module.weight[0, 0] + 3 * module.weight[0, 1])
    found = {}
    with forward_only(client):
        for eps in (0.5, 0.125):
            walker = Walker(client, "gaussian", eps, exact=True)
            found[eps] = [slope(walker.probe({}, seed), eps, None) for seed in (1, 2)]
            walker.settle()
    assert found[0.5] == found[0.125] == [-5.0, 3.5]

    strategy = build(num_seeds=2, learning_rate=0.1)
    monkeypatch.setattr(SeedPool, "seeds", [1, 2])
    start = {"weight": np.zeros((1, 2), np.float32)}
    strategy.initial, strategy._weights = lambda: start, start
    replies = [reply(pairs([0, 0, 1], [-5, -5, 3.5]), 3), reply(pairs([1, 1], [3.5, 3.5]), 1)]
    record, _ = strategy.aggregate_train(1, replies)
    assert strategy.state["accumulators"].tolist() == [-7.5, 4.375]
    np.testing.assert_allclose(record["weight"].numpy(), [[0.53125, -1.9375]], rtol=1e-6)


@pytest.mark.parametrize(
    ("histories", "expected"),
    [
        ([[0], [5], [10]], (0.1863, 0.3072, 0.5065)),
        ([[0, -4, 6], [0], [0, 2000]], (0.2131, 0.2116, 0.5753)),
    ],
)
def test_probabilities_of_pro(histories, expected):
    strategy = build(num_seeds=3, pro=True)
    strategy.state["sums"], strategy.state["counts"] = np.zeros(3), np.zeros(3)
    for k, history in enumerate(histories):
        strategy._remember(pairs([k] * len(history), history))
    np.testing.assert_allclose(strategy.probabilities(), expected, atol=6e-5)
    ratio = strategy.probabilities().max() / strategy.probabilities().min()
    assert ratio == pytest.approx(np.e, rel=1e-5)


def test_equal_histories_are_drawn_uniformly_and_pro_is_not_additive():
    strategy = build(num_seeds=8, pro=True)
    assert strategy.probabilities().tolist() == [0.125] * 8
    strategy._remember(pairs(range(8), [3.0] * 8))
    np.testing.assert_allclose(strategy.probabilities(), 0.125)
    assert not strategy.additive
    assert build().additive


def test_the_history_of_pro_begins_with_grad_initial():
    """Means (2 + 6) / 2, (2 + 1) / 2 and 2 scale to 1, 0 and 0.2."""
    strategy = build(num_seeds=3, pro=True, grad_initial=2.0)
    strategy._remember(pairs([0, 1], [6.0, -1.0]))
    expected = np.exp([1, 0, 0.2]) / np.exp([1, 0, 0.2]).sum()
    np.testing.assert_allclose(strategy.probabilities(), expected, rtol=1e-6)


def test_a_client_draws_by_the_probabilities():
    method = KSeed(local_steps=4000)
    chances = np.float32([0.1, 0.0, 0.6, 0.3])
    received = {**pool(4).message(np.zeros(4, np.float32)), "probabilities": chances}
    client = SimpleNamespace(received=received, generator=torch.Generator().manual_seed(1))
    drawn = np.bincount(method._choices(client, pool(4)), minlength=4) / 4000
    np.testing.assert_allclose(drawn, chances, atol=0.03)
    assert drawn[1] == 0
    received.pop("probabilities")
    uniform = np.bincount(method._choices(client, pool(4)), minlength=4) / 4000
    np.testing.assert_allclose(uniform, 0.25, atol=0.03)


# -- replay ------------------------------------------------------------------------------------


def test_pool_seeds_are_distinct_and_frozen():
    seeds = pool(4096).seeds
    assert len(set(seeds)) == 4096
    assert seeds[:100] == pool(100).seeds
    assert seeds[0] == 14034508427086690419


@pytest.mark.parametrize("exact", [False, True])
def test_a_thousand_steps_equal_their_replay(exact):
    """Relative to the way that was gone: 1e-5 with exact probes, 1e-4 with rounded ones."""
    torch.manual_seed(0)
    module = torch.nn.Linear(60, 50)
    start = {n: p.detach().numpy().copy() for n, p in module.named_parameters()}
    target = torch.randn(50, 60)
    client = client_of(module, lambda: (module.weight - target).square().mean())
    of = pool(256, start, eta=0.5)
    sums = np.zeros(256)
    with forward_only(client):
        walker = Walker(client, "gaussian", 1e-3, exact)
        for k in np.random.default_rng(0).integers(0, 256, 1000):
            g = np.float32(slope(walker.probe({}, of.seeds[k]), 1e-3, None))
            walker.move({of.seeds[k]: -of.eta * float(g)})
            sums[k] += g
        walker.settle()
    rebuilt = of.rebuild(start, sums.astype(np.float32))
    moved = np.linalg.norm(walker.weights["weight"] - start["weight"])
    error = np.linalg.norm(walker.weights["weight"] - rebuilt["weight"])
    assert moved > 0.1
    assert error / moved < (1e-5 if exact else 1e-4)


def test_replay_from_a_snapshot_equals_replay_from_the_start():
    rng = np.random.default_rng(1)
    first = rng.normal(size=64).astype(np.float32)
    second = first + np.where(rng.random(64) < 0.2, rng.normal(size=64), 0).astype(np.float32)
    snapshot = pool().rebuild(START, first)
    pool().move(snapshot, second.astype(np.float64) - first)
    whole = pool().rebuild(START, second)
    for name in START:
        np.testing.assert_allclose(snapshot[name], whole[name], atol=3e-6)


def test_replay_does_not_depend_on_how_arrays_lie_in_memory():
    sums = np.ones(64, np.float32)
    turned = {name: np.asfortranarray(x) for name, x in START.items()}
    for name, x in pool().rebuild(turned, sums).items():
        np.testing.assert_array_equal(x, pool().rebuild(START, sums)[name])


def final_weights(run):
    return Checkpoints(run.path, 2).latest().weights


def test_the_model_lies_in_the_span_of_the_pool(tmp_path):
    scenario = tiny(client=CLIENT, strategy={**STRATEGY, "num_seeds": 4}, num_rounds=2)
    run = simulation.run(scenario, out=tmp_path)
    with InlineGrid(recipe(scenario)) as grid:
        initial = grid.facts["arrays"]
    final = final_weights(run)
    difference = np.concatenate([(final[n] - initial[n]).ravel() for n in initial])
    master = Seeds(3).integer("seed-pool")
    z = np.stack([Directions(15).values(s) for s in pool(4, master=master).seeds])
    residual = np.linalg.lstsq(z.T, difference, rcond=None)[1]
    assert np.linalg.norm(difference) > 1e-2
    assert residual.item() < 1e-10


@pytest.mark.parametrize("num_clients", [1, 3])
def test_replay_equals_the_average_of_the_local_models(tmp_path, monkeypatch, num_clients):
    """Clients of 1, 2 and 3 parts; one alone is MeZO with a finite pool."""
    walks, shares = [], []
    original = KSeed.train

    def train(self, client):
        update = original(self, client)
        walks.append({n: p.detach().numpy().copy() for n, p in client.parameters.items()})
        shares.append(client.id + 1)
        return replace(update, num_examples=client.id + 1)

    monkeypatch.setattr(KSeed, "train", train)
    run = simulation.run(tiny(**KSEED, num_clients=num_clients, num_rounds=1), out=tmp_path)
    for name, x in final_weights(run).items():
        mean = np.average([walk[name] for walk in walks], axis=0, weights=shares)
        np.testing.assert_allclose(x, mean, rtol=1e-5, atol=1e-6)


# -- runs --------------------------------------------------------------------------------------


@pytest.mark.slow_variants
@pytest.mark.parametrize("more", [{}, {"pro": True}])
def test_it_learns(tmp_path, more):
    run = simulation.run(
        tiny(client=CLIENT, strategy={**STRATEGY, **more}, num_rounds=8), out=tmp_path
    )
    assert run.rounds[-1]["eval/loss"] < 0.5 * run.rounds[0]["eval/loss"]


def test_replay_by_clients_gives_the_servers_bits(tmp_path):
    runs = [
        simulation.run(
            tiny(client=CLIENT, strategy={**STRATEGY, **more}, num_rounds=3), out=tmp_path
        )
        for more in ({"replay": "clients"}, {"rebuild_every": 1}, {})
    ]
    digests = [run.summary["weights_sha256"] for run in runs]
    assert digests[0] == digests[1]
    assert runs[0].rounds[-1]["eval/loss"] == pytest.approx(
        runs[2].rounds[-1]["eval/loss"], rel=1e-4
    )


def test_missing_parts_cost_less_and_change_nothing(tmp_path):
    plan = {"clients_per_round": 2, "num_rounds": 8, "client": {**CLIENT, "local_steps": 4}}
    runs = [
        simulation.run(tiny(**plan, strategy={**STRATEGY, "synchronise": way}), out=tmp_path)
        for way in ("accumulators", "missing")
    ]
    assert runs[0].summary["weights_sha256"] == runs[1].summary["weights_sha256"]
    everything, missing = (r.rounds[-1]["comm/down_bytes_cum"] for r in runs)
    assert missing < everything
    for run in runs:
        rows = [row for row in run.clients if row["round"] > 1]
        assert all(row["replayed_seeds"] <= 64 for row in rows)
    with pytest.raises(PluginError, match="a copy of the model"):
        build(synchronise="missing", replay="clients")


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, {"pro": True}, {"synchronise": "missing"}])
def test_one_process_and_two_workers_give_the_same_bits(tmp_path, more):
    plan = {"client": CLIENT, "strategy": {**STRATEGY, **more}, "num_rounds": 3}
    engines = ({"backend": "inline"}, {"backend": "ray", "workers": 2})
    runs = [simulation.run(tiny(**plan, engine=engine), out=tmp_path) for engine in engines]
    assert len({run.summary["weights_sha256"] for run in runs}) == 1
    assert comparable(runs[0]) == comparable(runs[1])


@pytest.mark.slow_variants
@pytest.mark.parametrize("more", [{}, {"pro": True}, {"synchronise": "missing"}])
def test_resume_gives_the_same_bits(tmp_path, more):
    plan = {"client": CLIENT, "strategy": {**STRATEGY, **more}, "clients_per_round": 3}
    scenario = tiny(**plan, num_rounds=5, checkpoint={"every": 1})
    whole = simulation.run(scenario, out=tmp_path / "whole")
    resumed = simulation.resume(stopped(scenario, tmp_path, 3))
    assert resumed.summary["weights_sha256"] == whole.summary["weights_sha256"]
    assert comparable(resumed) == comparable(whole)


# -- bytes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [8, 64, 512])
def test_4096_seeds_and_200_steps_stay_below_18_kilobytes(tmp_path, hidden):
    client = {**CLIENT, "local_steps": 200, "batch_size": 1}
    strategy = {**STRATEGY, "num_seeds": 4096, "learning_rate": 1e-5, "rebuild_every": 1000}
    model = {"name": "tests.problems:perceptron", "options": {"hidden": hidden}}
    plan = {"client": client, "strategy": strategy, "model": model, "clients_per_round": 1}
    run = simulation.run(tiny(**plan, num_rounds=1), out=tmp_path)
    (row,) = run.clients
    dense = pool(4096).message(np.ones(4096, np.float32))
    down = wire.pack(dense).num_bytes
    assert row["up_bytes"] == 16 + 1 + (7 + 5) + (7 + 7) + 300 + 800
    assert 4 * 4096 < down <= 4 * 4096 + 120
    assert row["up_bytes"] + max(down, row["down_bytes"]) < 18_000


def test_equal_weight_counts_every_client_alike():
    for equal, weight in ((False, 20), (True, 1)):
        (report,) = trained(worker(client={**CLIENT, "equal_weight": equal}), 0).reports
        assert report.num_examples == weight


def test_many_steps_travel_as_one_sum_for_each_seed():
    method, of = KSeed(), pool(16)
    few = method._packed([(3, 1.5), (3, 2.0)], of, sums=True)
    many = method._packed([(i % 16, 1.0) for i in range(160)], of, sums=True)
    assert set(few) == {"seeds", "scalars"}
    assert many["accumulators"].tolist() == [10.0] * 16
    assert set(method._packed([(0, 1.0)] * 160, of, sums=False)) == {"seeds", "scalars"}


def test_asynchronous_sums_are_those_of_the_buffer():
    """Two pushes, one of them three versions old: G = 0.5 (A1 + s(3) A2), w = w0 - eta sum G z."""
    options = {"num_seeds": 8, "learning_rate": 0.1, "buffer_size": 2, "server_learning_rate": 0.5}
    strategy = registry.build("strategies", {"name": "fedbuff_kseed", **options})
    strategy.begin(to_record(START))
    pairs = [([1, 1, 5], [1.0, 2.0, 4.0]), ([5, 0], [-2.0, 6.0])]
    record = None
    for (seeds, scalars), staleness in zip(pairs, (0, 3), strict=True):
        assert record is None
        update = {"seeds": np.array(seeds, np.uint8), "scalars": np.array(scalars, np.float32)}
        content = RecordDict({DELTA: to_record(update), "m": MetricRecord({"num-examples": 1})})
        asked = Message(RecordDict({}), dst_node_id=seeds[0], message_type="train")
        reply = with_base(Message(content, reply_to=asked), {})
        record = strategy.receive(reply, staleness)
    expected = np.zeros(8, np.float32)
    expected[[1, 5, 0]] = 0.5 / 2 * np.array([3.0, 4.0 - 1.0, 3.0])  # s(3) = 1/2
    np.testing.assert_allclose(strategy.state["accumulators"], expected, rtol=1e-6)
    whole = strategy._pool().rebuild(START, expected, 1)
    for name, x in to_arrays(record).items():
        np.testing.assert_allclose(x, whole[name], atol=1e-6)


@pytest.mark.parametrize("option", [{"server_momentum": 0.9}, {"synchronise": "missing"}])
def test_what_a_buffer_of_seeds_cannot_do_is_refused(option):
    with pytest.raises(PluginError, match=next(iter(option)) + "|one version"):
        registry.build("strategies", {"name": "fedbuff_kseed", **option})
