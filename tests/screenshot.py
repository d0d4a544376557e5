"""Takes a picture of a page's upper part: ``python -m tests.screenshot PAGE PNG [HEIGHT]``.

Uses the system's Chromium; the height is in pixels, at a laptop's width.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
ARGUMENTS = ["--no-sandbox", "--disable-background-networking", "--disable-gpu"]
WIDTH, HEIGHT = 1280, 1800


def chromium() -> str | None:
    """The browser's program, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def take(page: Path, picture: Path, height: int = HEIGHT) -> None:
    """Open a page from disk and write what is in sight as PNG."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
        tab = browser.new_page(viewport={"width": WIDTH, "height": height})
        tab.goto(page.absolute().as_uri())
        tab.locator(".main-svg").first.wait_for()
        tab.screenshot(path=picture)
        browser.close()


if __name__ == "__main__":
    take(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
