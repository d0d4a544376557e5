"""Panels that weigh scores against costs, and look at clients: numbers computed by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.dashboards import (
    budget,
    classes,
    curves,
    drawing,
    frontier,
    internals,
    layers,
    page,
    participation,
    parts,
    score,
    staleness,
    steps,
    target,
    timeline,
)
from fedsim.dashboards.costs import BYTES, ENERGY, VIRTUAL, comparable
from fedsim.dashboards.panel import NothingToShow
from fedsim.records import Record
from fedsim.results import Run, RunFolder
from tests.run_folders import make_full_run, make_run, scenario


def written(root: Path, rounds: list[Record], metric: str = "accuracy", **values: Any) -> Run:
    """A run of these rounds, judged by accuracy (more is better) or loss (less is)."""
    key_metric = (f"eval/{metric}", "min" if metric == "loss" else "max")
    folder = RunFolder.create(root, scenario(**values), None, key_metric=key_metric)
    for n, record in enumerate(rounds):
        folder.add_round({"round": n, **record})
    return Run.open(folder.path)


# ---- cost to target


def test_cost_is_on_a_straight_line_between_two_tests(tmp_path: Path) -> None:
    run = make_run(tmp_path, (0.1, 0.5, 0.9), up=1000, down=2000)
    assert target.cost_to(run, BYTES, 0.7) == pytest.approx(4500)  # half way from 3000 to 6000
    assert target.cost_to(run, BYTES, 0.2) == pytest.approx(750)
    assert target.cost_to(run, BYTES, 0.5) == 3000
    assert target.cost_to(run, BYTES, 0.1) == 0
    assert target.cost_to(run, BYTES, 0.91) is None


def test_cost_counts_rounds_without_a_test(tmp_path: Path) -> None:
    rounds: list[Record] = [
        {"eval/accuracy": 0.0},
        {"comm/up_bytes": 10},
        {"comm/up_bytes": 10, "eval/accuracy": 0.2},
        {"comm/up_bytes": 80, "eval/accuracy": None},
        {"comm/up_bytes": 100, "eval/accuracy": 0.6},
    ]
    run = written(tmp_path, rounds)
    assert target.cost_to(run, BYTES, 0.1) == 10
    assert target.cost_to(run, BYTES, 0.4) == pytest.approx(
        110
    )  # a test that was not finite is passed over
    assert target.cost_to(run, ENERGY, 0.1) is None


def test_a_loss_is_reached_from_above(tmp_path: Path) -> None:
    rounds: list[Record] = [{"eval/loss": 4.0}, {"eval/loss": 2.0, "energy/joules": 100.0}]
    run = written(tmp_path, rounds, metric="loss")
    assert target.cost_to(run, ENERGY, 3.0) == 50.0
    assert target.cost_to(run, ENERGY, 1.0) is None


def test_bars_say_what_was_not_reached_and_by_how_many_seeds(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path, (0.1, 0.9), values={"name": "a"}),
        make_run(tmp_path, (0.1, 0.5), values={"name": "a", "seed": 1}),
        make_run(tmp_path, (0.1, 0.3), values={"name": "b"}),
    ]
    figure = target.draw(runs, target=0.9)
    bars, words = figure.data[:2]
    assert list(bars.y) == ["a, 2 seeds", "b"]
    assert list(bars.x) == [3000, 0]
    assert list(words.text) == ["3 kB (1 of 2 seeds)", "not reached"]
    assert list(bars.customdata) == ["3,000 B (1 of 2 seeds)", "not reached"]
    assert "Target: eval/accuracy 0.9." in drawing.notes(figure)


def test_slider_moves_bars_and_words(tmp_path: Path) -> None:
    figure = target.draw([make_run(tmp_path, (0.0, 0.5, 1.0))])
    (slider,) = figure.layout.sliders
    labels = [step.label for step in slider.steps]
    assert labels == ["0.5", "0.6", "0.7", "0.8", "0.85", "0.9", "0.95", "0.98", "1"]
    assert slider.active == 5
    (shown,) = figure.data[0].x
    assert shown == pytest.approx(5400)  # 0.9 is four fifths of the way from 3000 to 6000
    data = slider.steps[0].args[0]
    assert len(data["x"]) == len(figure.data)
    assert list(data["x"][0]) == [3000]
    assert data["text"][:2] == [None, ["3 kB"]]


# ---- budget


def test_best_test_within_a_budget(tmp_path: Path) -> None:
    run = make_run(tmp_path, (0.1, 0.5, 0.4))
    assert budget.best_within(run, BYTES, 2999) == 0.1
    assert budget.best_within(run, BYTES, 3000) == 0.5  # no line between tests here
    assert budget.best_within(run, BYTES, 1e9) == 0.5
    assert budget.best_within(run, VIRTUAL, 60) == 0.5
    late = written(tmp_path, [{}, {"eval/accuracy": 0.3, "energy/joules": 5}])
    assert budget.best_within(late, ENERGY, 4) is None


def test_budget_of_the_page_is_what_the_cheapest_run_spent(tmp_path: Path) -> None:
    cheap = make_run(tmp_path, (0.1, 0.5, 0.6), values={"name": "cheap"})
    dear = make_run(tmp_path, (0.1, 0.3, 0.8), up=9000, down=0, values={"name": "dear"})
    figure = budget.draw([cheap, dear])
    assert figure.layout.annotations[0].text == "bytes: 6 kB"
    assert list(figure.data[0].x) == [0.6, 0.1]  # 6000 B pay no round of the dear one
    (slider,) = figure.layout.sliders
    labels = [step.label for step in slider.steps]
    assert labels[-2:] == ["200 %", "500 %"]  # the dear one spent three times as much
    data, titles = slider.steps[-1].args
    assert list(data["x"][0]) == [0.6, 0.8]
    assert titles["annotations[0].text"] == "bytes: 30 kB"


def test_budgets_may_be_given(tmp_path: Path) -> None:
    run = make_run(tmp_path, (0.1, 0.5, 0.6))
    figure = budget.draw([run], megabytes=0.003, hours=1 / 60, joules=1.0)
    assert [list(trace.x) for trace in figure.data] == [[0.5], [0.5], [0.1], [0.6]]
    titles = [a.text for a in figure.layout.annotations]
    assert titles == [
        "bytes: 3 kB",
        "virtual time: 1 min 0 s",
        "energy: 1 J",
        "wall time: 1 min 0 s",
    ]
    assert not figure.layout.sliders


# ---- frontier


def points(*pairs: tuple[float, float]) -> list[frontier.Point]:
    group: Any = None
    return [frontier.Point(group, cost, score) for cost, score in pairs]


@pytest.mark.parametrize(
    ("pairs", "kept"),
    [
        ([(1, 0.5), (2, 0.6), (3, 0.55)], [(1, 0.5), (2, 0.6)]),
        ([(1, 0.5), (1, 0.5)], [(1, 0.5), (1, 0.5)]),  # equal in both: neither beats the other
        ([(1, 0.5), (2, 0.5)], [(1, 0.5)]),  # equal score, dearer
        ([(1, 0.5), (1, 0.4)], [(1, 0.5)]),  # equal cost, worse
        ([], []),
    ],
)
def test_frontier_with_ties(pairs: list[Any], kept: list[Any]) -> None:
    front = frontier.frontier(points(*pairs), "max")
    assert [(p.cost, p.score) for p in front] == kept


def test_frontier_of_losses() -> None:
    front = frontier.frontier(points((1, 3.0), (2, 2.0), (3, 2.5)), "min")
    assert [(p.cost, p.score) for p in front] == [(1, 3.0), (2, 2.0)]


def test_beaten_runs_are_grey(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path, (0.1, 0.5, 0.5), values={"name": "good"}),
        make_run(tmp_path, (0.1, 0.2, 0.4), values={"name": "beaten"}),
        make_run(tmp_path, (0.1, 0.2, 0.9), up=9000, values={"name": "dear"}),
    ]
    front, good, beaten, dear = frontier.draw(runs).data
    assert (list(good.x), list(good.y)) == ([3000], [0.5])  # when the best was first reached
    assert (list(front.x), list(front.y)) == ([3000, 22000], [0.5, 0.9])
    assert beaten.marker.color == frontier.GREY
    assert good.marker.color == drawing.COLOURS[0]
    assert dear.marker.color == drawing.COLOURS[2]
    assert "cheaper" in beaten.hovertemplate
    assert [b.label for b in frontier.draw(runs).layout.updatemenus[0].buttons] == [
        "bytes", "bytes up", "bytes down", "virtual time", "wall time", "energy"
    ]  # fmt: skip


def test_other_metrics_are_left_out_and_said_so(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, values={"name": name}) for name in ("a", "b")]
    runs.append(written(tmp_path, [{"eval/loss": 3.0}, {"eval/loss": 1.0}], "loss", name="lm"))
    kept, text = comparable(drawing.groups(runs))
    assert [group.label for group in kept] == ["a", "b"]
    assert text == "Left out: 1 of 3 runs, which are not judged by eval/accuracy."
    assert text in drawing.notes(frontier.draw(runs))


# ---- curves


def test_bands_over_seeds_of_unequal_length(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, (0.0, 0.2, 0.8)), make_run(tmp_path, (0.0, 0.4), values={"seed": 1})]
    band, line = score.draw(runs).data
    assert list(line.y) == pytest.approx([0.0, 0.3, 0.8])
    assert list(band.x) == [0, 1, 2, 2, 1, 0]
    assert list(band.y) == [0.0, 0.4, 0.8, 0.8, 0.2, 0.0]


def test_thinning_keeps_ends_extremes_and_gaps() -> None:
    heights = np.sin(np.arange(10_000) / 700)
    heights[1234], heights[777] = 5.0, -5.0
    kept = curves.thinning(heights, 100)
    assert len(kept) <= 100
    assert {0, 1234, 777, 9999} <= set(kept.tolist())
    gap = curves.thinning(np.full(50, math.nan), 10)
    assert 2 <= len(gap) <= 10
    assert gap.tolist() == sorted(set(gap.tolist()))


def test_long_runs_are_thinned_and_the_page_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curves, "MAX_DRAWN", 40)
    scores = [0.0] * 60
    scores[33] = 1.0
    run = make_run(tmp_path, scores)
    figure = score.draw([run])
    (line,) = figure.data
    assert len(line.x) <= 40
    assert max(line.y) == 1.0
    assert "more than 40 points" in drawing.notes(figure)[0]
    assert "more than 40 points are thinned" in page.page([run])


# ---- clients and rounds


def test_classes_share_what_became_of_them(tmp_path: Path) -> None:
    completed, late, scores = classes.draw([make_full_run(tmp_path)]).data
    assert list(completed.y[1]) == ["phone-0", "phone-1"]
    assert (completed.name, list(completed.x)) == ("completed", [1.0, 0.0])
    assert (late.name, list(late.x)) == ("late", [0.0, 1.0])
    assert [tuple(pair) for pair in late.customdata] == [(0, 2), (2, 2)]
    assert list(scores.x) == pytest.approx([0.4, 0.6])


def test_participation_is_a_share_of_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder.create(tmp_path, scenario(num_clients=4), None)
    pairs = [(1, 0), (1, 1), (2, 0), (3, 3), (3, 3)]
    folder.add_clients([{"round": n, "client": c, "stage": "train"} for n, c in pairs])
    run = Run.open(folder.path)
    (heat,) = participation.draw([run]).data
    assert heat.z.tolist() == [[1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 1]]
    monkeypatch.setattr(participation, "MAX_CELLS", (2, 2))
    figure = participation.draw([run])
    (heat,) = figure.data
    assert heat.z.tolist() == [[0.75, 0], [0, 0.5]]  # the last column is one round wide
    assert (list(heat.x), list(heat.y)) == ([1, 3], [0, 2])
    assert "2 neighbouring clients in 2 neighbouring rounds" in drawing.notes(figure)[0]


def test_time_line_of_the_last_round(tmp_path: Path) -> None:
    figure = timeline.draw([make_full_run(tmp_path)])
    download, compute, upload, other = figure.data
    assert list(download.y) == ["0", "1"]
    assert (list(download.base), list(download.x)) == ([0, 0], [1, 2])
    assert (list(compute.base), list(compute.x)) == ([1, 2], [2, 4])
    assert (list(upload.base), list(upload.x)) == ([3, 6], [1, 2])
    assert list(other.x) == [0, 0]
    assert figure.layout.shapes[0].x0 == 10  # when the round ended
    assert [tuple(c) for c in upload.customdata] == [("ok", "phone-0"), ("late", "phone-1")]
    with pytest.raises(NothingToShow, match="round 7"):
        timeline.draw([make_full_run(tmp_path)], round=7)


def test_staleness_and_internals(tmp_path: Path) -> None:
    run = make_full_run(tmp_path)
    mean, at_work = staleness.draw([run]).data
    assert (list(mean.y), list(at_work.y)) == ([1, 1], [2, 2])
    assert internals.own_keys([run]) == ["privacy/epsilon", "agg/update_norm"]
    epsilon, _ = internals.draw([run]).data
    assert (list(epsilon.x), list(epsilon.y)) == ([1, 2], [1, 2])


def test_local_steps(tmp_path: Path) -> None:
    run = make_full_run(tmp_path)
    figure = steps.draw([run])
    titles = [a.text for a in figure.layout.annotations][:5]
    assert titles == [
        "Loss within a round",
        "Slopes: median size",
        "Slopes: 95 % are smaller",
        "Slopes: largest",
        "Dropped steps",
    ]
    loss, median, most, largest, dropped = figure.data
    assert (list(loss.x), list(loss.y)) == ([1, 2], [1.0, 0.5])
    assert (list(median.x), list(median.y)) == ([1, 2], [10, 20])  # of 10, 20 and 10
    assert list(most.y) == pytest.approx([19, 38])
    assert list(largest.y) == [20, 40]
    assert list(dropped.y) == [0.25, 0.25]
    assert drawing.notes(figure) == [steps.LAST]


def test_logs_of_losses_alone_have_one_figure(tmp_path: Path) -> None:
    run = written(tmp_path, [{}, {}])
    RunFolder(run.path).add_steps([{"round": 1, "client": 0, "step": 1, "loss": 2.0}])
    (loss,) = steps.draw([Run.open(run.path)]).data
    assert (list(loss.x), list(loss.y)) == ([1], [2.0])
    with pytest.raises(NothingToShow, match="log_steps: true"):
        steps.draw([make_run(tmp_path, (0.5, 0.6))])


def test_internals_are_grouped_and_name_their_units(tmp_path: Path) -> None:
    rounds: list[Record] = [
        {},
        {
            "agg/zeta": 5,
            "agg/momentum_norm": 2,
            "agg/update_norm": 0.01,
            "agg/drawn_tenths": [1, 0],
        },
        {"agg/update_norm": 1.0, "agg/drawn_tenths": [0.75, 0.25], "privacy/epsilon": 1},
    ]
    figure = internals.draw([written(tmp_path, rounds)])
    titles = [a.text for a in figure.layout.annotations]
    assert titles == [
        "Privacy: spent so far",
        "Updates: clients' mean length",
        "Server: momentum",
        "Seeds: draws of the whole run",
        "agg/zeta",
    ]
    layout = figure.layout
    assert [layout.yaxis2.title.text, layout.yaxis5.title.text] == ["L2 norm", "zeta"]
    assert [layout.yaxis2.type, layout.yaxis3.type] == ["log", None]  # 0.01 and 1; 2
    assert layout.xaxis4.title.text == "tenth of the pool, most drawn first"
    tenths = figure.data[3]
    assert (list(tenths.x), list(tenths.y)) == ([1, 2], [0.75, 0.25])  # the last list
    assert drawing.notes(figure) == [internals.LISTS]


def test_a_run_missing_from_the_first_subplot_is_in_the_legend(tmp_path: Path) -> None:
    a = written(tmp_path, [{}, {"agg/first": 1.0, "agg/second": 1.0}], name="a")
    b = written(tmp_path, [{}, {"agg/second": 2.0}], name="b")
    entries = [(t.name, len(t.x)) for t in internals.draw([b, a]).data if t.showlegend]
    assert sorted(entries) == [("a", 1), ("b", 1)]
    ranks = [t.legendrank for t in internals.draw([b, a]).data if t.name == "b"]
    assert set(ranks) == {1000}


def test_runs_without_devices_take_no_place_among_classes(tmp_path: Path) -> None:
    plain = [written(tmp_path, [{}, {"time/wall_s": 1.0}], name=f"r{n}") for n in range(13)]
    figure = classes.draw([*plain, make_full_run(tmp_path, name="phones")])
    assert set(figure.data[0].y[0]) == {"phones"}
    assert not any("Only the first" in text for text in drawing.notes(figure))


def test_every_part_of_the_bytes_looks_different(tmp_path: Path) -> None:
    totals = {f"comm/up_{part}_bytes": 10 for part in (*parts.PARTS, "partial", "rest")}
    figure = parts.draw([written(tmp_path, [{}, totals])])
    looks = {(t.marker.color, t.marker.pattern.shape) for t in figure.data if t.showlegend}
    assert len(looks) == len(totals)


def test_single_clients_are_read_from_so_many_runs_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "MAX_READ", 3)
    runs = [make_run(tmp_path, values={"name": n, "seed": s}) for n in "abc" for s in (0, 1)]
    kept, text = drawing.first_groups(drawing.groups(runs))
    assert [group.label for group in kept] == ["a"]  # with b it would be four
    assert text == "Only the first 1 of 3 runs are shown here."


def test_twenty_five_runs_fit(tmp_path: Path) -> None:
    runs = [make_full_run(tmp_path, num_rounds=n) for n in range(1, 26)]
    figure = timeline.draw(runs)
    assert "Only the first 24 of 25 runs are shown here." in drawing.notes(figure)
    assert len(figure.layout.updatemenus[0].buttons) == 24


def test_bytes_by_layer_add_parts_and_sum_the_small_ones(tmp_path: Path) -> None:
    arrays = {f"net.block.{n}.weight": 100 - n for n in range(30)}
    totals = {f"comm/up_values_bytes/{name}": n for name, n in arrays.items()}
    totals |= {"comm/up_indices_bytes/net.block.3.weight": 50, "comm/down_header_bytes": 7}
    figure = layers.draw([written(tmp_path, [{}, totals])])
    up, down = figure.data
    assert up.y[:2] == ("3.weight", "0.weight")
    assert up.x[:2] == (97 + 50, 100)
    assert (up.y[-1], up.x[-1]) == ("all others", sum(range(71, 76)))
    assert set(down.x) == {0.0}
    assert drawing.notes(figure) == ["The 5 smallest arrays are summed in the last bar."]
