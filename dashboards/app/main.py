"""The script that Streamlit runs: ``streamlit run main.py -- RUNS``; see ``fedsim dashboard``."""

from __future__ import annotations

import sys
import time

import streamlit as st

from fedsim.dashboards.app import ahead, choosing, loading, views
from fedsim.dashboards.app.loading import Stamps
from fedsim.results import Run

FOLLOW_S = 2.0  # between looks at the run folders


def main(paths: list[str]) -> None:
    """Draw the page."""
    st.set_page_config(page_title="fedsim", layout="wide")
    stamps = loading.stamps(paths)
    st.sidebar.title("fedsim")
    view = st.sidebar.radio("View", list(views.VIEWS))
    often = f"Looks every {FOLLOW_S:.0f} seconds."
    follow = st.sidebar.toggle("Follow runs in progress", value=True, help=often)
    _draw(view, loading.runs(stamps))
    if follow:
        with st.sidebar.container():  # in the page's own place, a heading would be cleared with it
            drawn_s: list[float] = []
            _follow(paths, stamps, drawn_s)
            drawn_s.append(time.monotonic())


def _draw(view: str, runs: list[Run]) -> None:
    if not runs:
        st.info("There is no run here yet; this page looks again by itself.")
        return
    chosen = choosing.runs(runs)
    if not chosen:
        st.info("No run is chosen: change the choice in the sidebar.")
        return
    views.VIEWS[view](chosen)
    ahead.offer(chosen)


@st.fragment(run_every=FOLLOW_S)
def _follow(paths: list[str], seen: Stamps, drawn_s: list[float]) -> None:
    """Draw the page again when a run folder has changed or a new one is there.

    Also when this comes too soon to have been asked for by the page that was drawn last, which asks
    after ``FOLLOW_S``: then it met a click, and Streamlit may have dropped what that click has
    drawn. ``drawn_s`` holds when that was, and nothing while it is being drawn.
    """
    early = bool(drawn_s) and time.monotonic() - drawn_s[0] < 0.9 * FOLLOW_S
    if loading.stamps(paths) != seen or early:
        st.rerun()


main(sys.argv[1:])
