"""The report and the app in a real browser: what a person sees is what the run folder says.

Needs a Chromium of the system (``apt-get install chromium``); nothing is downloaded for it.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from fedsim.dashboards import serve
from fedsim.dashboards.page import write_page
from fedsim.results import RunFolder, find_runs
from tests.run_folders import make_run, scenario
from tests.screenshot import ARGUMENTS, chromium

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
NASTY = "<img src=http://example.com/x.png onerror=document.title='hacked'>"
TOLD = """
import plotly.graph_objects as go
order, title, question = 1, "Told", "Which target was chosen?"
def draw(runs, *, target: float | None = None):
    return go.Figure(go.Bar(y=[target]), layout={"title": {"text": f"told {target:.2f}"}})
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if chromium() is None:
        pytest.skip("no Chromium here: `apt-get install chromium`, then these tests run")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=chromium(), args=ARGUMENTS)


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of a laptop's size that records what it asks for and what goes wrong."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.asked = []
    page.wrong = []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("websocket", lambda websocket: page.asked.append(websocket.url))
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    yield page
    context.close()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("browser")


@pytest.fixture(scope="module")
def runs(here: Path) -> Path:
    """Two runs whose numbers a person can check, and one that calls itself markup."""
    root = here / "runs"
    make_run(root, (0.1, 0.5, 0.8), up=1000, down=2000, values={"name": "small"})
    make_run(root, (0.1, 0.6, 0.9), up=50_000, down=2000, values={"name": "large"})
    make_run(root, (0.1, 0.2, 0.3), values={"name": NASTY})
    return root


def kept_here(page: Page, *allowed: str) -> bool:
    """Whether nothing was asked of another machine."""
    foreign = [url for url in page.asked if not url.startswith((*allowed, "data:", "blob:"))]
    assert not foreign, foreign
    return bool(page.asked)


def traces(page: Page, figure: str) -> dict[str, dict]:
    """The lines that a figure shows, by name, as plotly holds them."""
    code = "f => f._fullData.map(t => ({name: t.name, x: Array.from(t.x), y: Array.from(t.y)}))"
    return {t["name"]: t for t in page.locator(figure).evaluate(code)}


def axis(page: Page, figure: str) -> str:
    return page.locator(f"{figure} .xtitle").first.text_content() or ""


def picture(page: Page, path: Path) -> None:
    page.screenshot(path=path)
    assert path.stat().st_size > 10_000


# ---- the report


def test_the_report_opens_from_disk_and_shows_the_run_folders(page, runs, tmp_path):
    write_page(find_runs([runs]), tmp_path / "report.html")
    page.goto((tmp_path / "report.html").as_uri())
    expect(page.locator("#panel-score .main-svg").first).to_be_visible()
    picture(page, tmp_path / "report.png")
    table = page.locator("table").first
    head = [h.strip() for h in table.locator("th").all_inner_texts()]
    best = next(i for i, h in enumerate(head) if h.startswith("best"))
    cells = [row.locator("td").all_inner_texts() for row in table.locator("tbody tr").all()]
    assert [row[0].strip() for row in cells] == ["small", "large", NASTY]
    assert [row[best].split()[0] for row in cells] == ["0.8", "0.9", "0.3"]
    table.locator("th").nth(best).locator("button").click()
    first = table.locator("tbody tr").first.locator("td")
    assert first.nth(best).inner_text().startswith("0.3")
    assert page.title().endswith("fedsim report")  # not hacked
    assert page.wrong == []
    assert kept_here(page, "file://")


def test_on_paper_long_figures_are_cut_between_their_rows(page, tmp_path):
    folder = RunFolder.create(tmp_path / "runs", scenario(), None)
    for n in range(3):
        folder.add_round({"round": n, **{f"agg/key_{k}": float(n) for k in range(15)}})
    write_page(find_runs([tmp_path / "runs"]), tmp_path / "report.html")
    page.goto((tmp_path / "report.html").as_uri())
    figure = page.locator("#panel-inside-the-methods")
    expect(figure.locator(".main-svg").first).to_be_visible()
    height = figure.evaluate("f => f.layout.height")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    pieces = page.locator(".piece").evaluate_all("all => all.map(p => p.offsetHeight)")
    assert len(pieces) == 3  # five rows
    assert sum(pieces) == pytest.approx(height, abs=2)
    assert max(pieces) < 700  # of A4, lying
    expect(figure).not_to_be_visible()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    expect(page.locator(".piece")).to_have_count(0)
    expect(figure).to_be_visible()
    assert figure.evaluate("f => f.layout.height") == height
    assert page.wrong == []


def test_the_x_axis_of_the_report_switches_to_bytes_and_back(page, runs, tmp_path):
    write_page(find_runs([runs]), tmp_path / "report.html")
    page.goto((tmp_path / "report.html").as_uri())
    button = page.locator("#panel-score .updatemenu-button")
    expect(button.first).to_be_visible()
    assert axis(page, "#panel-score").startswith("round")
    assert traces(page, "#panel-score")["large"]["x"] == [0, 1, 2]
    button.filter(has_text="bytes").first.click()
    expect(page.locator("#panel-score .xtitle")).to_contain_text("bytes")
    lines = traces(page, "#panel-score")
    run = next(r for r in find_runs([runs]) if r.name == "large")
    sent = [r["comm/up_bytes_cum"] + r["comm/down_bytes_cum"] for r in run.rounds]
    assert lines["large"]["x"] == sent[1:] == [52_000, 104_000]
    assert lines["small"]["x"] == [3000, 6000]
    assert lines["large"]["y"] == [0.6, 0.9]
    picture(page, tmp_path / "bytes.png")
    button.filter(has_text="rounds").click()
    expect(page.locator("#panel-score .xtitle")).to_contain_text("round")
    assert traces(page, "#panel-score")["large"]["x"] == [0, 1, 2]
    assert page.wrong == []
    assert kept_here(page, "file://")


# ---- the app


@pytest.fixture(scope="module")
def address(browser: Browser, runs: Path, here: Path) -> Iterator[str]:
    """The app as a person starts it, with one more panel, from a package's entry point."""
    package = here / "packages" / "told-1.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: told\nVersion: 1\n")
    (package / "entry_points.txt").write_text("[fedsim.panels]\ntold = told\n")
    (package.parent / "told.py").write_text(TOLD)
    command = ["fedsim", "dashboard", str(runs), "--port"]  # BROWSER opens nothing
    with _served(command, here, PYTHONPATH=os.pathsep.join([str(ROOT), str(package.parent)])) as at:
        yield at


@contextmanager
def _served(command: list[str], here: Path, **environment: str) -> Iterator[str]:
    """Where a module serves a page, which takes the port as its command's last word."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (here / f"{port}.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", *command, str(port)],
            cwd=here,
            env={**os.environ, "HOME": str(here), "BROWSER": "true", **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/_stcore/health", here / f"{port}.log")
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(20)


def _wait_for(url: str, log: Path) -> None:
    for _ in range(120):
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"the app did not start: {log.read_text()}")


def choose(page: Page, view: str) -> None:
    page.get_by_test_id("stSidebar").get_by_text(view, exact=True).click()
    expect(page.get_by_role("heading", name=view, exact=True)).to_be_visible(timeout=30_000)


def download(page: Page, button: str) -> Path:
    """Press a button and give the file that it makes."""
    with page.expect_download(timeout=30_000) as started:
        page.get_by_role("button", name=button).click()
    return Path(started.value.path())


def test_the_app_shows_the_run_folders_and_stays_on_this_machine(page, address, tmp_path):
    page.goto(f"http://{address}")
    expect(page.get_by_role("heading", name="Runs", exact=True)).to_be_visible(timeout=60_000)
    cell = page.locator("[role=gridcell]")
    expect(cell.filter(has_text="small")).to_be_attached(timeout=30_000)
    shown = cell.all_inner_texts()  # exact, where the picture shows rounded ones
    assert {"small", "large", NASTY, "0.9", "0.8", "0.3", "100000", "2000"} <= set(shown)
    picture(page, tmp_path / "runs.png")
    choose(page, "Figures")
    figure = ".js-plotly-plot:has(.updatemenu-button)"
    expect(page.locator(figure).first).to_be_visible(timeout=60_000)
    line = traces(page, f"{figure} >> nth=0")["large"]
    assert (line["x"], line["y"]) == ([0, 1, 2], [0.1, 0.6, 0.9])
    page.locator(figure).first.locator(".updatemenu-button", has_text="bytes").first.click()
    expect(page.locator(figure).first.locator(".xtitle").first).to_contain_text("bytes")
    assert traces(page, f"{figure} >> nth=0")["large"]["x"] == [52_000, 104_000]
    page.get_by_role("button", name="Figure as HTML").first.wait_for()
    for view in ("Scenarios", "Log", "Data"):
        choose(page, view)
    csv = pd.read_csv(download(page, "Download rounds.csv"))
    parquet = pd.read_parquet(download(page, "Download rounds.parquet"))
    for table in (csv, parquet):
        assert table["eval/accuracy"].tolist()[:6] == [0.1, 0.5, 0.8, 0.1, 0.6, 0.9]
    assert page.title() == "fedsim"  # not hacked
    assert page.wrong == []
    assert kept_here(page, f"http://{address}", f"ws://{address}")


def test_the_apps_slider_for_the_target_moves_the_panel(page, address, tmp_path):
    page.goto(f"http://{address}")
    choose(page, "Figures")
    title = page.locator(".js-plotly-plot .gtitle")
    expect(title.first).to_have_text("told 0.82", timeout=60_000)  # nine tenths from 0.1 to 0.9
    slider = page.get_by_test_id("stSlider").first.get_by_role("slider")
    value = float(slider.input_value())
    slider.focus()
    for _ in range(3):
        slider.press("ArrowLeft")
    expect(title.first).to_have_text(f"told {value - 0.03:.2f}")
    picture(page, tmp_path / "target.png")
    assert kept_here(page, f"http://{address}", f"ws://{address}")


def test_the_app_follows_a_run_in_progress_by_itself(page, runs, address):
    folder = RunFolder.create(runs, scenario(name="live", num_rounds=4), None)
    folder.add_round({"round": 0, "eval/accuracy": 0.1})
    page.goto(f"http://{address}")
    bar = page.get_by_test_id("stProgress")
    expect(bar).to_contain_text("round 0 of 4", timeout=60_000)
    folder.add_round({"round": 1, "eval/accuracy": 0.25})
    expect(bar).to_contain_text("round 1 of 4, eval/accuracy 0.25", timeout=15_000)


JUST_BEFORE_A_LOOK = """([view, period, before]) => new Promise(clicked => {
  const seen = window.asked;
  const wait = () => {
    if (window.asked === seen) return setTimeout(wait, 1);
    setTimeout(() => {
      const choices = [...document.querySelectorAll("[data-testid=stSidebar] label")];
      choices.find(choice => choice.innerText.trim() === view).click();
      clicked();
    }, window.asked + period - before - performance.now());
  };
  wait();
})"""
NOTES_WHEN_IT_ASKS = """
  window.asked = 0;
  const send = WebSocket.prototype.send;
  WebSocket.prototype.send = function (...data) {
    window.asked = performance.now();
    return send.apply(this, data);
  };
"""


def test_a_look_at_the_run_folders_that_meets_a_click_takes_nothing_off_the_page(
    page, runs, tmp_path
):
    script = serve.SCRIPT.read_text().replace("sys.argv[1:]", repr([str(runs)]))
    for old, new in {
        "FOLLOW_S = 2.0": "FOLLOW_S = 1.0",
        "st.rerun()": "print('drawn again', flush=True), st.rerun()",
    }.items():
        assert script.count(old) == 1
        script = script.replace(old, new)
    (tmp_path / "often.py").write_text(script)
    command = ["streamlit", "run", str(tmp_path / "often.py"), "--server.headless=true"]
    quiet = ["--browser.gatherUsageStats=false", "--server.port"]
    page.add_init_script(NOTES_WHEN_IT_ASKS)
    with _served([*command, *quiet], tmp_path, PYTHONPATH=str(ROOT)) as at:
        page.goto(f"http://{at}")
        expect(page.get_by_role("heading", name="Runs", exact=True)).to_be_visible(timeout=60_000)
        for before_ms, view in zip(range(2, 20, 2), ("Log", "Scenarios", "Data") * 3, strict=True):
            page.evaluate(JUST_BEFORE_A_LOOK, [view, 1000, before_ms])
            heading = page.get_by_role("heading", name=view, exact=True)
            expect(heading).to_be_visible(timeout=30_000)
        page.wait_for_timeout(2500)  # some looks that meet nothing
        expect(heading).to_be_visible()
    (log,) = tmp_path.glob("*.log")
    assert "drawn again" in log.read_text()  # the folders do not change: some looks met a click
