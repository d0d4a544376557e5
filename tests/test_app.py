"""The live app without a browser: every view, every control, and what it refuses."""

import base64
import json
import queue
import re
import socket
import sys
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
from streamlit.testing.v1 import AppTest

from fedsim.dashboards import page, serve
from fedsim.dashboards.app import ahead, choosing, loading, views
from fedsim.dashboards.panel import NothingToShow
from fedsim.errors import OutputError
from fedsim.results import Run, RunFolder
from fedsim.units import MISSING
from tests.command import Command, real
from tests.run_folders import make_run, scenario

NASTY = "![x](http://example.com/x.png) <script>alert(1)</script>"

BARE = re.compile(r"(?<!\\)[<\[]")
"""What Markdown or HTML would read as more than a letter."""


@pytest.fixture
def runs(tmp_path):
    """Two seeds of a scenario, and another one."""
    root = tmp_path / "runs"
    momentum = {"name": "fedavgm", "server_momentum": 0.5}
    make_run(root, (0.1, 0.5, 0.4), values={"tags": ["first"]})
    make_run(root, (0.1, 0.6, 0.8), values={"seed": 1, "tags": ["first"]})
    make_run(root, (0.1, 0.2, 0.3), values={"name": "other", "strategy": momentum})
    return root


@pytest.fixture
def app(runs, monkeypatch):
    return opened(runs, monkeypatch)


def opened(root: Path, monkeypatch) -> AppTest:
    monkeypatch.setattr(sys, "argv", ["main.py", str(root)])
    test = AppTest.from_file(str(serve.SCRIPT), default_timeout=60).run()
    assert not test.exception
    return test


def view(test: AppTest, name: str) -> AppTest:
    test.sidebar.radio[0].set_value(name).run()
    assert not test.exception, test.exception
    return test


def titles(test: AppTest) -> list[str]:
    return [s.value for s in test.subheader]


def drawn(test: AppTest) -> dict[str, dict]:
    """The figures by their panel's name."""
    charts = test.get("plotly_chart")
    return {c.proto.id.rsplit("figure ", 1)[-1]: json.loads(c.proto.spec) for c in charts}


def numbers(values) -> list[float]:
    """An array of a figure, as a list or as plotly packs one of NumPy."""
    if isinstance(values, list):
        return values
    return np.frombuffer(base64.b64decode(values["bdata"]), values["dtype"]).tolist()


def test_the_first_view_is_the_table_of_runs(app):
    (runs, seeds) = app.dataframe
    table = runs.value
    assert table["run"].tolist() == ["tiny", "tiny", "other"]
    assert table["best eval/accuracy"].tolist() == [0.5, 0.8, 0.3]
    assert b"0.5 (round 1)" in runs.proto.arrow_data.styler.display_values
    assert seeds.value["n"].tolist() == [2, 1]
    assert "server_momentum" in table.columns


def test_runs_are_picked_by_name_tag_and_strategy(app):
    filters = {m.label: m for m in app.sidebar.multiselect}
    assert filters["Name"].options == ["other", "tiny"]
    assert filters["Tag"].options == ["first"]
    assert filters["Strategy"].options == ["fedavg", "fedavgm"]
    assert "Codec" not in filters  # all alike
    filters["Strategy"].set_value(["fedavgm"]).run()
    assert app.dataframe[0].value["seed"].tolist() == [0]
    app.sidebar.multiselect(key="filter Strategy").set_value([]).run()
    app.sidebar.multiselect(key="filter Tag").set_value(["first"]).run()
    assert app.dataframe[0].value["seed"].tolist() == [0, 1]
    assert app.sidebar.caption[0].value == "2 of 3 runs"
    by_hand = app.sidebar.multiselect(key="left out")
    by_hand.set_value(by_hand.options).run()
    assert "No run is chosen" in app.info[0].value


@pytest.mark.slow
def test_figures_draws_every_panel_or_says_why_not(app):
    view(app, "Figures")
    assert titles(app) == [panel.title for panel in page.panels()]
    figures = drawn(app)
    empty = [i.value for i in app.info]
    assert len(figures) + len(empty) == len(page.panels())
    assert all(text.startswith("Nothing to show: ") for text in empty)
    lines = [t for t in figures["score"]["data"] if t.get("name") == "other"]
    assert numbers(lines[0]["y"]) == [0.1, 0.2, 0.3]
    app.multiselect(key="panels").set_value(["communication"]).run()
    assert list(drawn(app)) == ["communication"]
    assert [b.label for b in app.get("download_button")] == ["Figure as HTML"]


class Told:
    """A panel that shows what it was told."""

    order, title, question = 1, "Told", "What was this panel told?"
    __name__ = "told"

    @staticmethod
    def draw(runs, *, target: float | None = None, megabytes: float | None = None):
        return go.Figure(layout={"title": {"text": f"{target} {megabytes}"}})


@pytest.mark.slow
def test_sliders_for_target_and_budget_reach_the_panels_that_take_them(app, monkeypatch):
    view(app, "Figures")
    monkeypatch.setattr("fedsim.dashboards.options.panels", lambda: [Told, page.panels()[0]])
    app.run()
    app.multiselect(key="panels").set_value(["told", "score"]).run()
    (target,) = app.slider
    assert target.label == r"Target (eval/accuracy)"
    assert (target.min, target.max, target.step) == (0.1, 0.8, 0.01)
    (budget,) = app.select_slider
    assert (budget.options[0], budget.options[-1]) == ("5e-05", "0.01")  # of 6 kB a run
    target.set_value(0.42)
    budget.set_value(0.002).run()
    assert drawn(app)["told"]["layout"]["title"]["text"] == "0.42 0.002"
    app.multiselect(key="panels").set_value([]).run()
    assert not app.slider


@pytest.mark.slow
def test_a_panel_without_data_is_no_error(runs, monkeypatch):
    def nothing(runs):
        raise NothingToShow("No run has *it*.")

    monkeypatch.setattr(page.panels()[0], "draw", nothing)
    test = view(opened(runs, monkeypatch), "Figures")
    assert test.info[0].value == r"Nothing to show: No run has \*it\*\."


def test_scenarios_shows_what_differs(app):
    view(app, "Scenarios")
    assert app.dataframe[0].value["server_momentum"].tolist() == ["(default)", "(default)", "0.5"]
    assert "+  server_momentum: 0.5" in app.code[0].value
    first = app.selectbox[0]
    app.selectbox[1].set_value(first.value).run()
    assert app.code[0].value.startswith("name: tiny\n")
    assert app.code[0].language == "yaml"


@pytest.mark.slow_variants
@pytest.mark.parametrize(("name", "rows"), [("rounds", 9), ("clients", 18), ("summary", 3)])
def test_data_shows_each_table_and_offers_it(app, name, rows):
    view(app, "Data")
    app.main.radio[0].set_value(name).run()
    assert len(app.dataframe[0].value) == rows
    labels = [b.label for b in app.get("download_button")]
    assert labels == [f"Download {name}.csv", f"Download {name}.parquet"]


def test_log_shows_warnings_and_broken_folders(runs, monkeypatch):
    folder = next((runs / "tiny").iterdir())
    RunFolder(folder).event("WARNING", "a lazy client")
    with (folder / "rounds.jsonl").open("a") as file:
        file.write('{"round": 3, "eval/acc')
    test = view(opened(runs, monkeypatch), "Log")
    assert "a lazy client" in test.code[0].value
    assert "rounds.jsonl:4 is not a record and is left out (torn" in test.code[0].value


def test_a_run_in_progress_is_followed(tmp_path, monkeypatch):
    folder = RunFolder.create(tmp_path, scenario(num_rounds=4), None)
    folder.add_round({"round": 0, "eval/accuracy": 0.1})
    test = opened(tmp_path, monkeypatch)
    (bar,) = test.get("progress")
    assert (bar.proto.value, bar.proto.text) == (0, progress_text(0, 0.1))
    folder.add_round({"round": 1, "eval/accuracy": 0.25})
    test.run()
    (bar,) = test.get("progress")
    assert (bar.proto.value, bar.proto.text) == (25, progress_text(1, 0.25))
    assert test.dataframe[0].value["status"].tolist() == ["running"]


def progress_text(done: int, score: float) -> str:
    return choosing.plain(f"tiny, seed 0: round {done} of 4, eval/accuracy {score}")


def test_an_empty_folder_and_a_vanished_run_are_told(tmp_path, monkeypatch):
    test = opened(tmp_path, monkeypatch)
    assert "no run here yet" in test.info[0].value
    run = make_run(tmp_path)
    test.run()
    assert test.dataframe[0].value["run"].tolist() == ["tiny"]
    for file in run.path.iterdir():
        file.unlink()
    test.run()
    assert not test.exception
    assert "no run here yet" in test.info[0].value


def test_names_with_markup_are_shown_as_they_are(tmp_path, monkeypatch):
    make_run(tmp_path, values={"name": NASTY}, status="failed", reason=NASTY)
    running = RunFolder.create(tmp_path, scenario(name=NASTY), None)
    running.event("WARNING", NASTY)
    test = opened(tmp_path, monkeypatch)
    shown = [e.value for e in (*test.error, *test.caption)]
    shown += [bar.proto.text for bar in test.get("progress")]
    assert any("alert" in text for text in shown)
    assert [text for text in shown if BARE.search(text)] == []
    view(test, "Log")
    assert not any(BARE.search(e.label) for e in test.expander)
    assert NASTY in test.code[0].value
    for name in ("Figures", "Scenarios", "Data"):
        view(test, name)


def test_budgets_are_round_numbers_around_what_was_spent():
    assert choosing.one_two_five(1, 1) == [1.0]
    assert choosing.one_two_five(0.03, 700)[:2] == [0.02, 0.05]
    assert choosing.one_two_five(0.03, 700)[-1] == 1000.0


# ---- the command


def test_the_server_is_for_this_machine_and_tells_nobody(runs):
    told = serve.arguments([str(runs)], 8765, headless=True)
    flags = dict(flag.split("=", 1) for flag in told if flag.startswith("--") and "=" in flag)
    assert flags["--server.address"] == "127.0.0.1"
    assert flags["--server.port"] == "8765"
    assert flags["--server.headless"] == "true"
    assert flags["--browser.gatherUsageStats"] == "false"
    assert flags["--server.showEmailPrompt"] == "false"
    assert told[-2:] == ["--", str(runs)]


def test_what_cannot_be_served_is_refused(runs, tmp_path, monkeypatch, capfd):
    fedsim = Command(tmp_path, monkeypatch, capfd)
    assert "there is no such run folder" in fedsim.refuses("dashboard", "rnus")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert f"port {port} cannot be used" in fedsim.refuses("dashboard", "--port", str(port))
    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    with pytest.raises(OutputError, match=r"pip install 'fedsim-ft\[dashboard\]'"):
        serve.arguments([str(runs)], 8765, headless=True)


@pytest.mark.slow
def test_the_app_loads_neither_torch_nor_ray(runs, tmp_path):
    code = (
        "import sys\nfrom streamlit.testing.v1 import AppTest\n"
        f"sys.argv = ['main.py', {str(runs)!r}]\n"
        f"test = AppTest.from_file({str(serve.SCRIPT)!r}, default_timeout=60).run()\n"
        "for name in ('Figures', 'Data'):\n    test.sidebar.radio[0].set_value(name).run()\n"
        "assert not test.exception\n"
        "print([m for m in ('torch', 'ray', 'flwr', 'transformers') if m in sys.modules])\n"
    )
    done = real(tmp_path, sys.executable, "-c", code)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_figures_are_drawn_ahead_for_the_runs_that_are_looked_at(runs, monkeypatch):
    drawn = queue.SimpleQueue()
    monkeypatch.setattr(ahead, "_offers", None)
    monkeypatch.setattr(views, "figure", lambda name, some, given: drawn.put((name, some)))
    some = loading.runs(loading.stamps([str(runs)]))
    ahead.offer(some)  # of an app that nobody serves
    ahead.begin([str(runs)])
    ahead.offer(some[:1])
    found = [drawn.get(timeout=30) for _ in views.panel_names()]
    assert found == [(name, some[:1]) for name in views.panel_names()]


def test_of_many_runs_the_first_panels_are_drawn(app, monkeypatch):
    monkeypatch.setattr(views, "MANY_RUNS", 2)
    test = view(app, "Figures")
    assert titles(test) == [panel.title for panel in page.panels()[:4]]
    assert "Of 3 runs, the first 4 panels are drawn; add others." in [c.value for c in test.caption]
    test.multiselect(key="panels").select("health").run()
    assert titles(test)[-1] == "Health"


def test_what_was_not_measured_is_a_dash(app):
    assert {frame.proto.placeholder for frame in app.dataframe} == {MISSING}


def test_a_run_is_read_again_only_when_it_changed(app, runs, monkeypatch):
    read = []
    original = Run.open
    monkeypatch.setattr(Run, "open", lambda path: read.append(path) or original(path))
    app.run()
    assert read == []
    folder = next((runs / "other").iterdir())
    RunFolder(folder).add_round({"round": 3, "eval/accuracy": 0.9})
    app.run()
    assert list(map(Path, read)) == [folder]
