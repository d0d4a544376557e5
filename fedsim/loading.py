"""Python's garbage collector rests while libraries load."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

MANY = 10_000
"""Objects; fewer new ones are left to ordinary collections."""


@contextmanager
def loading() -> Iterator[None]:
    """Load without looking for garbage.

    Libraries stay, and looking through their objects while they grow, 450,000 with transformers,
    takes a sixth of the time of importing them. What was made meanwhile counts as old: the next
    collection leaves it alone, a full one does not. Also a decorator.
    """
    rests_already = not gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        many = gc.get_count()[0] > MANY  # asked first: frozen objects are counted one by one
        if many and not gc.get_freeze_count():  # what somebody else has frozen stays so
            gc.freeze()
            gc.unfreeze()  # into the oldest generation
        if not rests_already:
            gc.enable()
