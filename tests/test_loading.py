"""Python's collector rests while libraries load, and only then."""

import gc
import weakref

import pytest

from fedsim.loading import MANY, loading


class Cycle:
    """Garbage that only the collector finds."""

    def __init__(self):
        self.me = self


@pytest.fixture(autouse=True)
def collector():
    """The collector as in a fresh process; what conftest has frozen is frozen again afterwards."""
    gc.enable()
    gc.unfreeze()
    yield
    gc.enable()
    gc.freeze()


def test_garbage_waits_for_a_full_collection():
    with loading():
        assert not gc.isenabled()
        lost = weakref.ref(Cycle())
        library = [[] for _ in range(MANY)]
    assert gc.isenabled()
    gc.collect(1)
    assert lost() is not None
    gc.collect()
    assert lost() is None
    assert len(library) == MANY


def test_what_somebody_else_has_frozen_stays_frozen():
    gc.freeze()
    with loading():
        frozen = gc.get_freeze_count()
        library = [[] for _ in range(MANY)]
    assert len(library) == MANY
    assert gc.get_freeze_count() > frozen / 2 > 0  # some of it may be freed meanwhile


def test_inner_loading_leaves_the_outer_one_at_rest():
    @loading()
    def load():
        assert not gc.isenabled()

    with loading():
        load()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_the_collector_works_again_after_an_error():
    with pytest.raises(ImportError), loading():
        raise ImportError
    assert gc.isenabled()
