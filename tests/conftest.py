"""Settings of every test run."""

import gc

import pytest


def pytest_collection_finish(session: pytest.Session) -> None:
    """Leave what is loaded out of garbage collections, which some libraries ask for often."""
    gc.collect()
    gc.freeze()
