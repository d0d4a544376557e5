"""Settings of every test run."""

import gc

import pytest


def pytest_collection_finish(session: pytest.Session) -> None:
    """Leave what is loaded out of garbage collections, which some libraries ask for often."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take a client for deadly after one death: each costs a worker's start."""
    monkeypatch.setattr("fedsim.engine.calls.MAX_DEATHS", 1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The quick part has one of a test's slow variants."""
    seen = set()
    for item in items:
        if item.get_closest_marker("slow_variants"):
            test = item.nodeid.partition("[")[0]
            if test in seen:
                item.add_marker(pytest.mark.slow)
            seen.add(test)
