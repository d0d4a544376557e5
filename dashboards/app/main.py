"""The script that Streamlit runs: ``streamlit run main.py -- RUNS``; see ``fedsim dashboard``."""

from __future__ import annotations

import sys

import streamlit as st

from fedsim.dashboards.app import ahead, choosing, loading, views
from fedsim.dashboards.app.loading import Stamps

FOLLOW_S = 2.0  # between looks at the run folders


def main(paths: list[str]) -> None:
    """Draw the page."""
    st.set_page_config(page_title="fedsim", layout="wide")
    stamps = loading.stamps(paths)
    runs = loading.runs(stamps)
    st.sidebar.title("fedsim")
    view = st.sidebar.radio("View", list(views.VIEWS))
    if st.sidebar.toggle("Follow runs in progress", value=True, help="Looks every 2 seconds."):
        _follow(paths, stamps)
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
def _follow(paths: list[str], seen: Stamps) -> None:
    """Draw the page again when a run folder has changed or a new one is there."""
    if loading.stamps(paths) != seen:
        st.rerun()


main(sys.argv[1:])
