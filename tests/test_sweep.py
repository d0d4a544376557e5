"""Sweeps: every value once, nothing twice, and a failure stops no other trial."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedsim import sweep
from fedsim.events import at_work
from fedsim.results import Run, find_runs
from fedsim.seeds import Seeds
from fedsim.trials import Range, SweepSection
from tests.bad_scenarios import GOOD
from tests.command import Command
from tests.engine.runs import StopAt, outcome

GRID = "sweep:\n  grid: {client.learning_rate: [0.1, 0.2]}\n"


@pytest.fixture
def fedsim(tmp_path, monkeypatch, capfd):
    (tmp_path / "tiny.yaml").write_text(GOOD + GRID)
    return Command(tmp_path, monkeypatch, capfd)


def stamps() -> dict[str, float]:
    return {str(p): p.stat().st_mtime_ns for p in Path("runs").rglob("rounds.jsonl")}


def test_a_grid_runs_every_combination_with_every_seed_and_ends_in_one_table(fedsim):
    out = fedsim.prints("sweep", "tiny.yaml", "seeds=[0, 1]", "--json")
    table = json.loads(out.splitlines()[-1])
    rows = [(*r["options"].values(), r["seed"], r["status"]) for r in table["runs"]]
    assert rows == [(rate, seed, "done") for rate in ("0.1", "0.2") for seed in (0, 1)]
    assert [group["final"]["n"] for group in table["groups"]] == [2, 2]
    assert Path("runs/sweeps/tiny/report.html").is_file()
    assert len(find_runs(["runs/sweeps/tiny"])) == 4


@pytest.mark.slow
def test_what_is_finished_is_not_repeated_and_what_is_added_is_run(fedsim):
    fedsim.prints("sweep", "tiny.yaml")
    before = stamps()
    out = fedsim.prints("sweep", "tiny.yaml", "engine.threads_per_worker=1")
    assert out.count("finished before") == 2
    assert stamps() == before
    more = "sweep.grid={client.learning_rate: [0.1, 0.3], client.batch_size: [8]}"
    out = fedsim.prints("sweep", "tiny.yaml", more)
    assert "trial 1 of 2: learning_rate=0.1, batch_size=8, seed 3: finished before" in out
    assert "trial 2 of 2: learning_rate=0.3, batch_size=8, seed 3\n" in out
    assert {k: v for k, v in stamps().items() if k in before} == before
    assert len(stamps()) == 3


@pytest.mark.slow_variants
@pytest.mark.parametrize("saved", [1, 100])
def test_an_interrupted_trial_is_resumed_or_repeated_to_the_same_bits(fedsim, tmp_path, saved):
    file, overrides = tmp_path / "tiny.yaml", ["num_rounds=3", f"checkpoint.every={saved}"]
    trials = sweep.plan(file, overrides)[:2]
    whole = sweep.play(trials, tmp_path / "whole", file, lambda seed: StopAt(-1))
    stops = iter([StopAt(-1), StopAt(2)])
    with pytest.raises(KeyboardInterrupt):
        sweep.play(trials, tmp_path / "parts", file, lambda seed: next(stops))
    again = sweep.play(trials, tmp_path / "parts", file, lambda seed: StopAt(-1))
    assert [outcome(run) for run in again.runs] == [outcome(run) for run in whole.runs]
    assert len(find_runs([tmp_path / "parts"])) == (2 if saved == 1 else 3)


def test_a_trial_that_is_at_work_elsewhere_is_not_begun_a_second_time(tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text(GOOD + GRID)
    trials = sweep.plan(file, ["num_rounds=3", "checkpoint.every=1"])
    stops = iter([StopAt(2)])
    with pytest.raises(KeyboardInterrupt):
        sweep.play(trials, tmp_path, file, lambda seed: next(stops))
    (first,) = find_runs([tmp_path])
    with at_work(first.path):
        played = sweep.play(trials, tmp_path, file, lambda seed: StopAt(-1))
    assert len(played.failures) == 1
    assert "is at work in another process" in played.failures[0]
    assert len(find_runs([tmp_path])) == 2


@pytest.mark.slow
def test_a_failed_trial_stops_no_other_and_is_tried_again(fedsim):
    bad = "sweep.grid={client.learning_rate: [0.1, 1.0e+38, 0.2]}"
    code, out, err = fedsim("sweep", "tiny.yaml", bad, "num_rounds=2", "--json")
    assert code == 3
    assert err.splitlines()[-1].startswith(
        "fedsim: 1 of 3 trials failed; the first: learning_rate=1e+38, seed 3: 6 of 6 clients"
    )
    rows = json.loads(out.splitlines()[-1])["runs"]
    assert [row["status"] for row in rows] == ["done", "failed", "done"]
    code, out, err = fedsim("sweep", "tiny.yaml", bad, "num_rounds=2")
    assert code == 3
    assert out.count("finished before") == 2


def test_options_hold_for_every_name_wherever_they_stand_in_the_grid(fedsim, tmp_path):
    (tmp_path / "tiny.yaml").write_text(GOOD)
    rates = "{strategy.server_learning_rate: [0.1, 0.5], strategy: [fedavg, fedavgm]}"
    trials = sweep.plan(tmp_path / "tiny.yaml", [f"sweep.grid={rates}"])
    sections = [trial.scenario.strategy.section for trial in trials]
    assert [(s["name"], s["server_learning_rate"]) for s in sections] == [
        ("fedavg", 0.1), ("fedavgm", 0.1), ("fedavg", 0.5), ("fedavgm", 0.5),
    ]  # fmt: skip
    assert trials[0].label == "server_learning_rate=0.1, strategy=fedavg, seed 3"


REFUSED = {
    "sweep.grid={client.learning_rte: [1]}": ("learning_rte", "Did you mean 'learning_rate'?"),
    "sweep.grid={client.batch_size: [8, -1]}": ("client.batch_size=-1",),
    "sweep.grid={client.batch_size: []}": ("'client.batch_size' has no values",),
    "sweep.grid={nonsense: [8]}": ("unknown key 'nonsense'", "nonsense=8"),
    "sweep.grid={seed: [1, 2]}": ("'seed' cannot be swept over", "seeds: [0, 1, 2]"),
    "sweep.grid=8": ("'sweep.grid' must be",),
    "sweep.trials=3": ("'trials' goes with 'random'",),
    "sweep.random={client.batch_size: [8]}": ("exactly one of 'grid' and 'random'",),
    "sweep={random: {client.batch_size: {low: 9, high: 8}}, trials: 2}": ("low (9)",),
    "sweep=": ("has no section 'sweep'", "Add one"),
}


@pytest.mark.parametrize("override", REFUSED)
def test_mistakes_are_named_before_anything_runs(fedsim, override):
    paragraph = fedsim.refuses("sweep", "tiny.yaml", override)
    for part in REFUSED[override]:
        assert part in paragraph
    assert not Path("runs").exists()


def test_run_plays_the_scenario_itself(fedsim):
    fedsim.prints("run", "tiny.yaml")
    (run,) = find_runs(["runs"])
    assert "sweep" not in Run.open(run.path).scenario


def test_random_values_come_from_the_seed_alone():
    section = SweepSection(random={"a": ["x", "y"], "b": Range(low=1, high=3)}, trials=40)
    drawn = section.values(Seeds(1))
    assert drawn == section.values(Seeds(1)) != section.values(Seeds(2))
    assert drawn[:3] == section.model_copy(update={"trials": 3}).values(Seeds(1))
    assert {v["a"] for v in drawn} == {"x", "y"}
    assert {v["b"] for v in drawn} == {1, 2, 3}


def test_a_logarithmic_range_has_as_many_draws_in_each_decade():
    generator = Seeds(0).numpy("x")
    draws = [Range(low=1e-3, high=1.0, log=True).draw(generator) for _ in range(3000)]
    assert all(1e-3 <= x <= 1 for x in draws)
    for low in (1e-3, 1e-2, 1e-1):
        assert 900 < sum(low <= x < 10 * low for x in draws) < 1100  # 1000, sd 26
