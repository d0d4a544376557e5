"""The log of local steps: it is what happened, to the bit, wherever the work was done."""

import math
from dataclasses import dataclass

import numpy as np
import pytest

from fedsim import load_runs, simulation
from fedsim.client import Client
from fedsim.clients.sgd import SGD
from fedsim.directions import Directions
from fedsim.results import RunFolder
from tests.engine.runs import outcome, recipe, six_rounds, stopped
from tests.problems import tiny
from tests.test_event_loop import anarchic
from tests.test_fedkseed import final_weights, pool
from tests.test_zeroth_order import mezo

LOGGED = {"log_steps": True, "checkpoint": {"every": 1}}
STEPS = "steps.jsonl"
ADAMU = {"name": "zo_adamu", "learning_rate": 0.02, "local_steps": 5}
KSEED = {"name": "kseed", "local_steps": 12, "batch_size": 8}
FEDKSEED = {"name": "fedkseed", "num_seeds": 64, "learning_rate": 0.02}


def of_one(client, **changes):
    """Two rounds of a single client, logged."""
    return tiny(num_clients=1, client=client, **{**LOGGED, **changes})


def initial(scenario):
    from fedsim.engine.inline import InlineGrid

    with InlineGrid(recipe(scenario)) as grid:
        return {name: x.copy() for name, x in grid.facts["arrays"].items()}


def moved(weights, steps, rate, kind="gaussian"):
    """The weights after the steps of a log."""
    directions = Directions(sum(x.size for x in weights.values()), kind)
    for step in steps:
        directions.add(weights, step["direction_seed"], -rate * step["scalar"])
    return weights


# -- what is in it -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mezo", "fedmezo"])
def test_weights_can_be_made_again_from_seeds_and_scalars(tmp_path, name):
    client = {**mezo(local_steps=7, num_directions=2, exact=True), "name": name}
    scenario = of_one(client)
    run = simulation.run(scenario, out=tmp_path)
    steps = list(run.steps)
    assert [(s["round"], s["step"]) for s in steps] == [
        (n, step) for n in (1, 2) for step in range(1, 8) for _ in range(2)
    ]
    assert len({s["direction_seed"] for s in steps}) == 28
    again = moved(initial(scenario), steps, client["learning_rate"] / 2)
    for array, expected in final_weights(run).items():
        np.testing.assert_allclose(again[array], expected, atol=1e-6)


def test_fedkseeds_log_holds_the_seeds_of_the_pool(tmp_path):
    scenario = of_one(KSEED, strategy=FEDKSEED)
    run = simulation.run(scenario, out=tmp_path)
    again = moved(initial(scenario), run.steps, FEDKSEED["learning_rate"])
    for array, expected in final_weights(run).items():
        np.testing.assert_allclose(again[array], expected, atol=1e-6)


@pytest.mark.parametrize(
    "client", [mezo(local_steps=5), {**KSEED, "local_steps": 5}, ADAMU], ids=lambda c: c["name"]
)
def test_clients_metrics_are_those_of_their_steps(tmp_path, client):
    strategy = FEDKSEED if client["name"] == "kseed" else {"name": "fedavg"}
    run = simulation.run(tiny(client=client, strategy=strategy, **LOGGED), out=tmp_path)
    steps = load_runs(run.path).steps()
    assert len(steps) == 2 * 6 * 5
    slopes = (steps.loss_plus - steps.loss_minus) / 2e-3
    np.testing.assert_allclose(steps.scalar, slopes, rtol=1e-6)
    of_clients = steps.assign(
        size=steps.scalar.abs(), loss=(steps.loss_plus + steps.loss_minus) / 2
    )
    means = of_clients.groupby(["round", "client"])[["size", "loss"]].mean()
    for row in run.clients:
        found = means.loc[(row["round"], row["client"])]
        assert found["size"] == pytest.approx(row["mean_abs_scalar"])
        assert found["loss"] == pytest.approx(row["train_loss"])


def test_dropped_steps_have_no_scalar(tmp_path):
    run = simulation.run(of_one(mezo(local_steps=4, loss_clip=1e-9)), out=tmp_path)
    steps = list(run.steps)
    assert [s["scalar"] for s in steps] == [None] * 8
    assert all(s["loss_plus"] > 0 for s in steps)
    assert not [line for line in run.events if "scalar" in line]  # null is meant here


@pytest.mark.parametrize(
    ("client", "strategy"),
    [("sgd", "fedavg"), ("fedprox", "fedavg"), ("vmap_sgd", "fedavg"), ("ferret", "ferret")],
)
def test_first_order_clients_log_their_losses(tmp_path, client, strategy):
    client = {"name": client, "learning_rate": 0.1, "batch_size": 8, "local_epochs": 2}
    run = simulation.run(tiny(client=client, strategy={"name": strategy}, **LOGGED), out=tmp_path)
    steps = load_runs(run.path).steps()
    assert set(steps) - {"run", "name", "strategy", "codec", "seed"} == {
        "round", "client", "step", "loss",
    }  # fmt: skip
    counts = steps.groupby(["round", "client"])["step"].max()
    assert set(counts) == {2 * math.ceil(20 / 8)}
    means = steps.groupby(["round", "client"])["loss"].mean()
    for row in run.clients:
        assert means.loc[(row["round"], row["client"])] == pytest.approx(row["train_loss"])


def test_seeds_are_those_that_the_pool_has(tmp_path):
    run = simulation.run(of_one(KSEED, strategy=FEDKSEED), out=tmp_path)
    assert len({step["direction_seed"] for step in run.steps}) <= 64
    assert all(isinstance(seed, int) for seed in pool().seeds)


def test_seeds_are_whole_beside_runs_that_have_none(tmp_path):
    walk = simulation.run(of_one(mezo(local_steps=3)), out=tmp_path / "a")
    simulation.run(tiny(**LOGGED), out=tmp_path / "b")
    steps = load_runs(tmp_path).steps()
    seeds = steps.direction_seed.dropna().tolist()
    assert seeds == [step["direction_seed"] for step in walk.steps]
    assert len(steps) > len(seeds)


# -- where it is -------------------------------------------------------------------------------


def test_nobody_who_did_not_ask_gets_one(tmp_path):
    run = simulation.run(tiny(client=mezo(local_steps=2)), out=tmp_path)
    assert not (run.path / STEPS).exists()
    assert not list(run.steps)
    assert load_runs(run.path).steps().empty
    assert not run.problems


def test_a_log_changes_nothing_else(tmp_path):
    plain = outcome(simulation.run(tiny(client=mezo(local_steps=3)), out=tmp_path / "a"))
    logged = tiny(client=mezo(local_steps=3), log_steps=True)
    both = outcome(simulation.run(logged, out=tmp_path / "b"))
    assert len(both.pop("steps")) == 2 * 6 * 3
    assert not plain.pop("steps")
    assert both == plain


def test_mods_leave_it_as_it_is(tmp_path):
    one = {**LOGGED, "num_rounds": 1}
    plain = outcome(simulation.run(tiny(**one), out=tmp_path / "a"))["steps"]
    mods = ["tests.test_apps:recording_mod"]
    wrapped = outcome(simulation.run(tiny(mods=mods, **one), out=tmp_path / "b"))
    assert wrapped["steps"] == plain
    assert len(plain) == 6 * 3


def test_asynchronous_strategies_have_one(tmp_path):
    changes = {"client": mezo(local_steps=3), "strategy": {"name": "fedbuff", "buffer_size": 2}}
    run = simulation.run(anarchic(**changes, log_steps=True), out=tmp_path)
    ended = [row["client"] for row in run.clients if row["status"] == "ok"]
    assert [(s["client"], s["step"]) for s in run.steps] == [
        (client, step) for client in ended for step in (1, 2, 3)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_it_is_the_same_for_any_number_of_workers(tmp_path, workers):
    plan = {"client": mezo(local_steps=3), **LOGGED}
    here = outcome(simulation.run(tiny(**plan), out=tmp_path / "a"))
    ray = {"backend": "ray", "workers": workers}
    assert outcome(simulation.run(tiny(**plan, engine=ray), out=tmp_path / "b")) == here
    assert len(here["steps"]) == 36


@pytest.mark.parametrize("server_round", [2, 5])
def test_a_resumed_run_has_every_step_once(tmp_path, server_round):
    scenario = six_rounds(client=mezo(local_steps=2), log_steps=True)
    expected = outcome(simulation.run(scenario, out=tmp_path / "whole"))
    folder = stopped(scenario, tmp_path / "parts", server_round)
    with (folder / STEPS).open("a") as file:
        file.write('{"round": 5, "cli')
    assert outcome(simulation.resume(folder)) == expected
    assert len(expected["steps"]) == 6 * 3 * 2


def test_steps_after_the_last_checkpoint_are_taken_back(tmp_path):
    run = simulation.run(of_one(mezo(local_steps=2)), out=tmp_path)
    RunFolder.reopen(run.path, 1)
    assert {step["round"] for step in run.steps} == {1}


# -- clients of one's own ----------------------------------------------------------------------


@dataclass(kw_only=True)
class Logging(SGD):
    """Notes what it is told to; ``nothing`` notes nothing."""

    note: str = "a tensor"

    def train(self, client: Client):
        value = {"a tensor": np.float32(1), "a word": "1", "a taken name": 1}.get(self.note)
        if self.note != "nothing":
            client.log_step(1, **{"client" if self.note == "a taken name" else "mine": value})
        return client.update()


def logging(note):
    return {"name": "tests.test_step_log:Logging", "note": note}


@pytest.mark.parametrize("note", ["a tensor", "a word", "a taken name"])
def test_what_is_no_number_fails_its_client(tmp_path, note):
    scenario = tiny(client=logging(note), max_failed_fraction=1.0, **LOGGED)
    run = simulation.run(scenario, out=tmp_path)
    rows = list(run.clients)
    assert {row["status"] for row in rows} == {"failed"}
    assert "log_step was given 1 and {" in rows[0]["error"]
    assert "under other names than round, client, step" in rows[0]["error"]
    assert not list(run.steps)


def test_who_asks_and_gets_nothing_is_told(tmp_path):
    run = simulation.run(tiny(client=logging("nothing"), **LOGGED), out=tmp_path)
    (line,) = [line for line in run.events if "log_steps" in line]
    assert "'tests.test_step_log:Logging' has logged no step" in line
