"""Comparisons and the report page: numbers a person can check, and nothing fetched."""

from __future__ import annotations

import math
import re
import statistics
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plotly.offline import get_plotlyjs

from fedsim.dashboards import (
    axes,
    communication,
    curves,
    devices,
    drawing,
    fairness,
    health,
    page,
    parts,
    score,
)
from fedsim.dashboards.panel import NothingToShow
from fedsim.errors import OutputError
from fedsim.results import Run, RunFolder
from tests.run_folders import make_full_run, make_run, scenario

NASTY = "<b>x</b></script><script>alert(1)</script>&%{x}"


@pytest.fixture
def seeds(tmp_path: Path) -> list[Run]:
    """Three seeds with final scores 0.2, 0.4 and 0.9."""
    finals = (0.2, 0.4, 0.9)
    return [make_run(tmp_path, (0.1, v), values={"seed": s}) for s, v in enumerate(finals)]


# ---- panels


def test_score_draws_the_numbers_of_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path, (0.1, 0.5, 0.4))
    figure = score.draw([run])
    (line,) = figure.data
    assert (list(line.x), list(line.y)) == ([0, 1, 2], [0.1, 0.5, 0.4])
    assert figure.layout.yaxis.title.text == "eval/accuracy (share of correct answers)"
    menu = figure.layout.updatemenus[0].buttons
    names = ["rounds", "bytes", "bytes up", "bytes down", "virtual time", "wall time", "energy"]
    assert [button.label for button in menu] == names
    rounds, sent, up, down, virtual, wall, energy = (button.args for button in menu)
    assert [list(x) for x in rounds[0]["x"]] == [[0, 1, 2]]
    assert [list(x) for x in up[0]["x"]] == [[1000, 2000]]
    assert [list(x) for x in down[0]["x"]] == [[2000, 4000]]
    assert [list(x) for x in virtual[0]["x"]] == [[0, 60, 120]]
    assert [list(x) for x in energy[0]["x"]] == [[0, 500, 1000]]
    assert [list(x) for x in sent[0]["x"]] == [[3000, 6000]]  # up + down; round 0 has no bytes
    assert [list(y) for y in sent[0]["y"]] == [[0.5, 0.4]]
    assert [list(x) for x in wall[0]["x"]] == [[0, 1.5, 3]]
    assert sent[1]["xaxis.type"] == "log"
    assert (rounds[1]["xaxis.type"], rounds[1]["xaxis.tickvals"]) == ("linear", None)
    assert "2 kB" not in rounds[1].values()
    assert "5 kB" in sent[1]["xaxis.ticktext"]


def test_seeds_are_a_mean_line_in_a_band(seeds: list[Run]) -> None:
    band, line = score.draw(seeds).data
    assert list(line.x) == [0, 1]
    assert list(line.y) == pytest.approx([0.1, 0.5])
    assert line.name == "tiny, 3 seeds"
    assert list(line.customdata) == [3, 3]
    assert (list(band.x), list(band.y)) == ([0, 1, 1, 0], [0.1, 0.9, 0.2, 0.1])
    assert band.fill == "toself"


def test_seeds_of_different_length_say_how_many_are_behind_a_point(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, (0.0, 0.2, 0.8)), make_run(tmp_path, (0.0, 0.4), values={"seed": 1})]
    line = score.draw(runs).data[1]
    assert list(line.customdata) == [2, 2, 1]
    assert list(line.y) == pytest.approx([0.0, 0.3, 0.8])


def test_a_nan_of_one_seed_is_a_gap_in_the_mean(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path, (0.0, 0.2, 0.6)),
        make_run(tmp_path, (0.0, math.nan, 0.8), values={"seed": 1}),
    ]
    band, line = score.draw(runs).data
    assert list(line.y) == pytest.approx([0.0, math.nan, 0.7], nan_ok=True)
    assert (list(band.x), list(band.y)) == ([0, 2, 2, 0], [0.0, 0.8, 0.6, 0.0])


def test_communication_draws_both_directions(tmp_path: Path) -> None:
    up, down = communication.draw([make_run(tmp_path, (0, 0, 0))]).data
    assert (list(up.x), list(up.y)) == ([1, 2], [1000, 2000])
    assert (list(down.x), list(down.y)) == ([1, 2], [2000, 4000])
    assert (up.xaxis, down.xaxis) == ("x", "x2")
    assert (up.showlegend, down.showlegend) == (True, False)


def test_parts_stacks_what_was_counted(tmp_path: Path) -> None:
    values, nothing_down, header, _ = parts.draw([make_run(tmp_path, (0, 0, 0))]).data
    assert (values.name, list(values.x), list(header.x)) == ("values", [1800], [200])
    assert list(nothing_down.x) == [0]


def test_health_draws_clients_memory_and_speed(tmp_path: Path) -> None:
    figure = health.draw([make_run(tmp_path, failed=1)])
    names = [a.text for a in figure.layout.annotations]
    assert names == [
        "completed",
        "failed",
        "peak memory of the largest process",
        "speed (wall time)",
    ]
    completed, failed, memory, speed = figure.data
    assert (list(completed.x), list(completed.y)) == ([1, 2], [3, 3])
    assert list(failed.y) == [1, 1]
    assert list(memory.y) == [101, 102]
    assert list(speed.y) == [2.0, 2.0]  # 3 clients in 1.5 s


def test_fairness_of_clients_without_tests_is_that_of_their_losses(tmp_path: Path) -> None:
    figure = fairness.draw([make_run(tmp_path, losses=(0.5, 1.5))])
    box, worst, gini = figure.data
    assert list(box.x) == [0.5, 1.5]
    assert list(worst.x) == [1.5]
    assert list(gini.x) == [0.25]  # sum of |a - b| over pairs is 2; / (2 n^2 mean) = 2 / 8
    assert "train loss" in figure.layout.xaxis.title.text
    assert "evaluate.personal" in drawing.notes(figure)[0]


def test_fairness_prefers_scores_on_own_rows(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, scenario(), None, key_metric=("eval/accuracy", "max"))
    scores = {3: (0.1, 0.9), 6: tuple(i / 20 for i in range(20))}
    for round_, values in scores.items():
        rows = [{"round": round_, "stage": "train", "client": i, "train_loss": 9} for i in (0, 1)]
        rows += [
            {"round": round_, "stage": "evaluate", "client": i, "accuracy": value}
            for i, value in enumerate(values)
        ]
        folder.add_clients(rows)
    folder.add_round({"round": 0, "eval/accuracy": 0.1})
    figure = fairness.draw([Run.open(folder.path)])
    box, worst, _ = figure.data
    assert list(box.x) == [i / 20 for i in range(20)]  # of the last test only
    assert list(worst.x) == pytest.approx([0.025])  # two of twenty: 0 and 0.05
    assert drawing.notes(figure) == [fairness.WITH_SCORES]


def test_boxes_fall_back_on_examples_and_leave_out_failed_clients(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, scenario(), None)
    folder.add_clients(
        [
            {"round": 1, "client": 0, "status": "ok", "num_examples": 7},
            {"round": 1, "client": 1, "status": "failed", "num_examples": 9, "error": "NaN"},
        ]
    )
    figure = fairness.draw([Run.open(folder.path)])
    assert [list(trace.x) for trace in figure.data] == [[7], [7], [0]]
    assert figure.layout.xaxis.title.text == "training examples of a client"


@pytest.mark.parametrize("panel", page.panels(), ids=lambda panel: panel.title)
def test_every_panel_says_why_it_is_empty_and_labels_its_axes(panel: Any, tmp_path: Path) -> None:
    empty = Run.open(RunFolder.create(tmp_path, scenario(name="new"), None).path)
    with pytest.raises(NothingToShow, match="No run has"):
        panel.draw([empty])
    assert panel.question.count("?") == 1
    figure = panel.draw([empty, make_full_run(tmp_path, name="full")])
    titles = [axis.title.text for axis in figure.select_xaxes()]
    assert all(titles)
    assert any(axis.title.text for axis in figure.select_yaxes())


def test_groups_look_different(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, (0, 1), values={"num_rounds": n}) for n in range(1, 14)]
    looks = [(group.colour, group.dash) for group in drawing.groups(runs)]
    assert len(set(looks)) == 13


def test_curve_averages_x_and_y() -> None:
    runs: Any = [0, 1]
    of = curves.Column.of
    curve = curves.curve(runs, lambda r: of([1], [2.0 * r]), lambda r: of([1, 2], [10.0 + r, 99.0]))
    columns = (curve.x, curve.mean, curve.low, curve.high, curve.n)
    assert [list(column) for column in columns] == [[10.5], [1.0], [0.0], [2.0], [2]]
    assert curve.mean[0] == statistics.fmean([0.0, 2.0])


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0, 3000, 6000], ["1 kB", "2 kB", "5 kB", "10 kB", "20 kB", "50 kB"]),
        ([10, 10**6], ["10 B", "100 B", "1 kB", "10 kB", "100 kB", "1 MB"]),
    ],
)
def test_log_ticks_are_bytes(values: list[float], ticks: list[str]) -> None:
    assert axes.log_bytes(values)["ticktext"] == ticks


# ---- page


class Links(HTMLParser):
    """Collects everything that a browser would fetch or run, and the visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "data")]

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] not in (["script"], ["style"]):
            self.text += data


def test_page_fetches_nothing(seeds: list[Run]) -> None:
    html = page.page(seeds)
    assert html.count(get_plotlyjs()) == 1
    own = html.replace(get_plotlyjs(), "")
    links = Links(own)
    assert links.fetched == []
    assert "link" not in links.tags
    assert "iframe" not in links.tags
    assert not re.search(r"@import|url\(", own)
    assert "default-src 'none'" in own
    configs = re.findall(r"\"showSendToCloud\":\s*(\w+)", own)
    assert configs == ["false"] * own.count('<div id="panel-')
    assert len(configs) > 8
    assert "plotlyServerURL" not in own


def test_page_escapes_names(tmp_path: Path) -> None:
    run = make_run(tmp_path, values={"name": NASTY, "data": {"path": "<img src=x>"}})
    RunFolder(run.path).event("WARNING", "<script>boom</script>")
    html = page.page([Run.open(run.path)]).replace(get_plotlyjs(), "")
    links = Links(html)
    assert "alert(1)" in links.text
    assert "img" not in links.tags
    assert "<script>alert" not in html
    assert "<script>boom" not in html
    assert "</script><script>" not in html


def test_figures_escape_names(tmp_path: Path) -> None:
    runs = [make_full_run(tmp_path, name=NASTY, seed=s) for s in (0, 1)]
    runs += [make_full_run(tmp_path, name=f"{NASTY}2")]
    for panel in page.panels():
        text = panel.draw(runs).to_json()
        assert "<b>x" not in text  # plotly itself would show it, or run it
        assert "<script" not in text
        assert "&lt;b&gt;x" in text


def test_devices_and_keys_are_escaped(tmp_path: Path) -> None:
    run = make_full_run(tmp_path)
    RunFolder(run.path).add_round({"round": 3, f"agg/{NASTY}": 1.0, "time/virtual_s": 5.0})
    row = {"round": 3, "client": 0, "status": NASTY, "device": NASTY, "time/virtual_s": 1.0}
    RunFolder(run.path).add_clients([row])
    run = Run.open(run.path)
    for panel in page.panels():
        assert "<b>x" not in panel.draw([run]).to_json()
    html = page.page([run]).replace(get_plotlyjs(), "")
    assert "<script>alert" not in html


def test_page_shows_tables_reasons_and_warnings(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, values={"seed": s}) for s in (0, 1)]
    runs.append(make_run(tmp_path, values={"name": "bad"}, status="failed", reason="boom"))
    RunFolder(runs[0].path).event("WARNING", "lazy client")
    text = Links(page.page([Run.open(run.path) for run in runs])).text
    for part in ("Over seeds", "bad, seed 0: boom", "lazy client", "sklearn:digits", "3 runs"):
        assert part in text
    assert "(default)" not in text  # no option differs


def test_page_of_an_empty_run_says_why(tmp_path: Path) -> None:
    empty = Run.open(RunFolder.create(tmp_path, scenario(), None).path)
    html = page.page([empty])
    assert html.count("Nothing to show: No run has") == len(page.panels())


def test_page_is_the_same_twice(seeds: list[Run]) -> None:
    assert page.page(seeds) == page.page(seeds)


def test_write_page_makes_folders_and_replaces_atomically(seeds: list[Run], tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    page.write_page(seeds, path)
    page.write_page(seeds[:1], path)
    assert path.read_text(encoding="utf-8") == page.page(seeds[:1])
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_write_page_into_something_that_is_no_folder(seeds: list[Run], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        page.write_page(seeds, tmp_path / "file" / "report.html")
    with pytest.raises(OutputError, match="cannot be written"):
        page.write_page(seeds, tmp_path)


def test_devices_draws_time_energy_and_who_was_left_out(tmp_path: Path) -> None:
    figure = devices.draw([make_run(tmp_path, [0.1, 0.5, 0.6])])
    curves = [trace for trace in figure.data if trace.type == "scatter"]
    assert [list(trace.y) for trace in curves] == [[60.0, 120.0], [500.0, 1000.0]]
    bars = {trace.text: list(trace.x) for trace in figure.data if trace.type == "bar"}
    assert bars == {"completed": [8], "late": [2]}


def test_panels_have_places_and_titles_of_their_own():
    titles = [panel.title for panel in page.panels()]
    orders = [panel.order for panel in page.panels()]
    assert len(set(titles)) == len(titles)
    assert len(set(orders)) == len(orders)


def test_long_lines_of_single_rounds_are_means_with_ranges() -> None:
    heights = np.array([1.0, 3, np.nan, np.nan, 5, np.nan, 7, 9, 2])
    x, n = np.arange(9.0), np.ones(9, np.int64)
    short = curves.averaged(curves.Curve(x, heights, heights - 1, heights + 1, n), most=4)
    assert short.x.tolist() == [0.5, 2.5, 4.5, 7.0]
    np.testing.assert_array_equal(short.mean, [2, np.nan, 5, 6])
    np.testing.assert_array_equal(short.low, [0, np.nan, 4, 1])
    np.testing.assert_array_equal(short.high, [4, np.nan, 6, 10])
    whole = curves.Curve(x[:8], heights[:8], heights[:8], heights[:8], n[:8])
    assert curves.averaged(whole, most=4) is whole


@pytest.mark.parametrize(
    ("values", "log", "labels"),
    [
        ([0, 7000], False, ["0", "20 min", "40 min", "1 h", "1 h 20 min", "1 h 40 min", "2 h"]),
        ([200_000], False, ["0", "12 h", "1 d", "1 d 12 h", "2 d", "2 d 12 h"]),
        ([2_000_000], False, ["0", "4 d", "8 d", "12 d", "16 d", "20 d", "24 d"]),
        ([50, 5000], True, ["10 s", "1 min", "10 min", "1 h", "10 h"]),
        ([100], False, None),
    ],
)
def test_ticks_of_times_are_read_off_clocks(
    values: list[float], log: bool, labels: list[str] | None
) -> None:
    assert axes.time_ticks(values, log=log)["ticktext"] == labels
