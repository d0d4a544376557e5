"""Work done before it is asked for: run folders are read while the server starts, and figures are
drawn while a person looks at the table of runs.

Both only fill the caches of ``loading`` and ``views``; whoever asks for a figure that is just being
drawn waits for it. What fails here fails again where it is asked for, and is said there.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from contextlib import suppress

from fedsim.dashboards.app import loading, views
from fedsim.results import Run

_offers: queue.SimpleQueue[Sequence[Run]] | None = None


def begin(paths: Sequence[str]) -> None:
    """Start reading the runs below some paths; from now on, ``offer`` draws."""
    global _offers
    _offers = queue.SimpleQueue()
    threading.Thread(target=_work, args=(list(paths), _offers), daemon=True).start()


def offer(runs: Sequence[Run]) -> None:
    """Say which runs are looked at, so that their figures can be drawn; does not wait."""
    if _offers is not None:
        _offers.put(list(runs))


def _work(paths: Sequence[str], offers: queue.SimpleQueue[Sequence[Run]]) -> None:
    with suppress(Exception):
        loading.runs(loading.stamps(paths))
    while True:
        runs = offers.get()
        for name in views.panel_names():
            if not offers.empty():  # of other runs, or of more rounds
                break
            with suppress(Exception):
                views.figure(name, runs, {})
