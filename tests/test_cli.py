"""The commands, as a person or a script uses them."""

from __future__ import annotations

import json
import resource
import sys
from collections import Counter
from pathlib import Path

import pytest

from fedsim import layers, listing
from fedsim.results import Run, find_runs
from tests.bad_scenarios import GOOD
from tests.command import Command, real

HEAVY = ("torch", "ray", "peft", "flwr", "transformers", "datasets", "pandas")
FLOWER = "flwr.serverapp.strategy:"


@pytest.fixture
def fedsim(tmp_path, monkeypatch, capfd):
    (tmp_path / "tiny.yaml").write_text(GOOD)
    return Command(tmp_path, monkeypatch, capfd)


def runs() -> list[Run]:
    return [Run.open(run.path.relative_to(Path.cwd())) for run in find_runs(["runs"])]


# run


def test_run_says_what_it_does_and_leaves_a_report(fedsim):
    out = fedsim.prints("run", "tiny.yaml", "num_rounds=2")
    (run,) = runs()
    lines = out.splitlines()
    assert lines[0] == f"tiny: writing {run.path}"
    assert lines[1] == "6 clients; 15 of 15 parameters are trained and exchanged (60 B)"
    assert [line.split("  ")[0] for line in lines[2:5]] == ["round 0/2", "round 1/2", "round 2/2"]
    assert "eval/accuracy" in out
    assert lines[-1] == f"report: {run.path}/report.html"
    assert "<html" in (run.path / "report.html").read_text()
    assert run.status == "done"
    assert (run.path / "scenario.yaml").read_text() == GOOD


@pytest.mark.slow
def test_run_by_name_of_a_shipped_scenario_and_another_folder(fedsim):
    overrides = ["num_rounds=1", "engine.backend=inline", "model.warm_start=", "num_clients=4"]
    fedsim.prints("run", "quickstart", "--out", "elsewhere", *overrides, "clients_per_round=2")
    (folder,) = Path("elsewhere").glob("quickstart/*/")
    assert Run.open(folder).status == "done"


def test_json_has_one_object_a_line(fedsim):
    code, out, err = fedsim("run", "tiny.yaml", "num_rounds=2", "--json")
    rounds = [json.loads(line) for line in out.splitlines()]
    table = rounds.pop()
    assert code == 0
    assert [(r["seed"], r["round"]) for r in rounds] == [(3, 0), (3, 1), (3, 2)]
    assert {k: v for k, v in rounds[-1].items() if k != "seed"} == runs()[0].rounds[-1]
    assert table["runs"][0]["final"] == rounds[-1]["eval/accuracy"]
    assert table["groups"][0]["seeds"] == [3]
    assert "6 clients" in err


def test_seeds_make_a_folder_each_and_one_page_with_mean_and_spread(fedsim):
    out = fedsim.prints("run", "tiny.yaml", "seeds=[0, 1, 2]")
    folders = runs()
    assert [run.seed for run in folders] == [0, 1, 2]
    assert len({run.summary["weights_sha256"] for run in folders}) == 3
    for i in range(3):
        assert f"seed {i} ({i + 1} of 3)\ntiny: writing {folders[i].path}\n" in out
    assert "mean ± sample standard deviation over n seeds" in out
    (page,) = Path("runs/tiny").glob("*-seeds.html")
    assert out.endswith(f"report: {page}\n")
    assert "±" in page.read_text(encoding="utf-8")


def test_seeds_are_told_apart_in_json(fedsim):
    out = fedsim.prints("run", "tiny.yaml", "seeds=[5, 4]", "--json")
    *rounds, table = [json.loads(line) for line in out.splitlines()]
    assert [(r["seed"], r["round"]) for r in rounds] == [(5, 0), (5, 1), (4, 0), (4, 1)]
    (group,) = table["groups"]
    assert group["seeds"] == [5, 4]
    assert group["final"]["n"] == 2


def test_a_terminal_sees_bars_for_each_seed(fedsim, monkeypatch):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    out = fedsim.prints("run", "tiny.yaml", "seeds=[0, 1]", "name='[/red]'")
    assert "seed 1 (2 of 2)" in out
    assert "rounds" in out
    assert "[/red]: writing" in out


# validate


def test_validate_counts_and_trains_nothing(fedsim):
    out = fedsim.prints("validate", "tiny.yaml", "clients_per_round=2", "strategy=fedadam")
    assert out.splitlines() == [
        "tiny: ok",
        "  6 clients; 15 of 15 parameters are trained and exchanged (60 B)",
        "  2 clients a round, 1 rounds",
        "  FedAdam, client sgd",
        "  codec none",
        "  30 rows in the global test set",
    ]
    assert [path.name for path in Path().iterdir()] == ["tiny.yaml"]


def test_validate_is_silent_on_standard_error_with_stock_strategies(fedsim):
    for name in ("FedMedian", "Krum"):
        code, out, err = fedsim("validate", "tiny.yaml", f"strategy={FLOWER}{name}")
        assert (code, err) == (0, "")
        assert f"  {name}, client sgd\n" in out


def test_validate_says_how_to_get_what_is_missing(fedsim):
    paragraph = fedsim.refuses("validate", "sst2_tiny_bert")
    assert "base/sst2.yaml:8: files that you bring are missing" in paragraph
    assert "sst2/train.csv" in paragraph
    assert "nyu-mll/glue" in paragraph


# list and show


NAMES = [(kind, name) for kind, entries in listing.KINDS.items() for name in entries()]


@pytest.mark.parametrize(("kind", "name"), NAMES)
def test_everything_listed_can_be_shown(kind, name, capsys):
    listing.show(f"{kind}:{name}")
    assert len(capsys.readouterr().out) > 60


SHARED = {name for name, count in Counter(name for _, name in NAMES).items() if count > 1}
ONE_OF_EACH = {kind: (kind, name) for kind, name in NAMES if name not in SHARED}


@pytest.mark.parametrize(("kind", "name"), ONE_OF_EACH.values())
def test_a_name_is_enough_to_show(kind, name, capsys):
    listing.show(f"{kind}:{name}")
    card = capsys.readouterr().out
    listing.show(name)
    assert capsys.readouterr().out == card


def test_a_name_of_two_kinds_shows_both(fedsim):
    assert {"ferret", "zo_adamu"} <= SHARED
    out = fedsim.prints("show", "ferret")
    strategy, client = (fedsim.prints("show", f"{kind}:ferret") for kind in ("strategy", "client"))
    assert out == f"--- strategies:ferret\n\n{strategy}\n--- clients:ferret\n\n{client}"
    both = fedsim.prints("show", "zo_adamu")
    assert "--- scenarios:zo_adamu" in both
    assert "--- clients:zo_adamu" in both


def test_list_prints_every_name_with_its_summary(fedsim):
    out = fedsim.prints("list")
    for kind, entries in listing.KINDS.items():
        assert f"{kind}:\n" in out
        for entry in entries().values():
            lines = [row for row in out.splitlines() if row.split()[0] == entry.name]
            assert any(line.endswith(entry.summary) for line in lines)
            assert entry.summary


def test_list_of_one_kind_and_for_machines(fedsim):
    assert fedsim.prints("list", "codecs").startswith("codecs:\n  bf16")
    table = json.loads(fedsim.prints("list", "--json"))
    assert list(table) == list(listing.KINDS)
    assert table["strategies"]["fedavgm"].startswith("FedAvgM")


def test_list_has_flowers_strategies_that_can_be_used_and_no_others():
    from flwr.serverapp import strategy

    listed = {name.removeprefix(FLOWER) for name in listing.flower_strategies()}
    usable = set(strategy.__all__) - {"Strategy", "Result", "FedXgbBagging", "FedXgbCyclic"}
    assert listed == usable


def test_show_names_options_types_bounds_and_facts(fedsim):
    card = fedsim.prints("show", "sgd")
    assert "  learning_rate: float > 0  (default 0.1)\n" in card
    assert "  local_steps: int > 0 | none  (default None)\n" in card
    assert "  optimizer_options: dict[str, Any]  (default {})\n" in card
    assert "  learning_rate_schedule: constant | linear | cosine  (default 'constant')\n" in card
    assert "sends: delta\n" in card
    assert "  server_momentum: float >= 0 < 1  (default 0.9)\n" in fedsim.prints("show", "fedavgm")
    assert "property object" not in fedsim.prints("show", "strategy:fedmezo")
    card = fedsim.prints("show", f"{FLOWER}QFedAvg")
    assert "  client_learning_rate: float  (required)\n" in card
    assert "  fraction_train" not in card.split("\nOptions:\n")[1]
    assert "  num_partitions:" not in fedsim.prints("show", "partitioner:dirichlet")
    assert "  none\n" in fedsim.prints("show", "codec:none").split("\nOptions:\n")[1]


def test_show_a_scenario_prints_its_file(fedsim):
    path = layers.find_scenario("quickstart")
    assert fedsim.prints("show", "quickstart") == path.read_text(encoding="utf-8")


def test_show_schema_prints_the_json_schema(fedsim):
    schema = json.loads(fedsim.prints("show", "schema"))
    assert schema["title"] == "Scenario"
    assert "extends" in schema["properties"]


def test_show_finds_what_lies_in_the_current_folder(fedsim):
    Path("lies_here.py").write_text('class A:\n    """Hello."""\n    additive = False\n')
    assert "is no strategy" in fedsim.refuses("show", "lies_here:A")
    card = fedsim.prints("show", "clients:tests.apps:app")
    assert "Options:" not in card


# compare and report


@pytest.mark.slow
def test_compare_and_report_over_several_runs(fedsim):
    fedsim.prints("run", "tiny.yaml")
    fedsim.prints("run", "tiny.yaml", "client.batch_size=4")
    table = json.loads(fedsim.prints("compare", "runs", "--json"))
    assert [row["options"]["client.batch_size"] for row in table["runs"]] == ["8", "4"]
    assert "batch_size" in fedsim.prints("compare", "runs")
    assert fedsim.prints("report", "runs", "-o", "page.html") == "page.html\n"
    page = Path("page.html").read_text(encoding="utf-8")
    assert "batch_size" in page
    assert "plotly" in page


# new


@pytest.mark.slow
def test_a_new_strategy_is_tested_runs_and_differs_from_fedavg(fedsim, tmp_path):
    out = fedsim.prints("new", "strategy", "my_avg")
    assert out.splitlines() == [
        "wrote my_avg.py, test_my_avg.py",
        "try:  fedsim run quickstart strategy.name=my_avg:MyAvg",
        "test: pytest test_my_avg.py",
    ]
    assert 20 <= len(Path("my_avg.py").read_text().splitlines()) <= 40
    rounds = ("num_rounds=3",)
    fedsim.prints("run", "tiny.yaml", "strategy.name=my_avg:MyAvg", *rounds)
    fedsim.prints("run", "tiny.yaml", "strategy.name=my_avg:MyAvg", "strategy.boost=0", *rounds)
    fedsim.prints("run", "tiny.yaml", *rounds)
    mine, plain, fedavg = (run.summary["weights_sha256"] for run in runs())
    assert mine != plain
    assert plain == fedavg


@pytest.mark.slow
def test_the_new_strategys_own_test_passes_without_our_configuration(fedsim, tmp_path):
    fedsim.prints("new", "strategy", "my_avg")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_my_avg.py"]
    done = real(tmp_path, *command)
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


# Speed


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["run", "--help"], []])
def test_looking_around_loads_nothing_heavy(tmp_path, arguments):
    code = (
        "import sys, atexit\nfrom fedsim.cli import main\n"
        f"atexit.register(lambda: print([m for m in {HEAVY} if m in sys.modules]))\nmain()\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = real(tmp_path, sys.executable, "-c", code, *arguments)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.splitlines()[-1] == "[]"
    assert done.stderr == ""
    assert after.ru_utime - before.ru_utime < 2, "0.2 to 0.5 s on an idle machine"
