"""What happens beside the rounds of a run: its lock, warnings that are recorded, and Ctrl-C."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from weakref import WeakSet

from fedsim.errors import OutputError, RunError
from fedsim.progress import Reporter
from fedsim.results import RunFolder, writing

log = logging.getLogger("fedsim")
_locks: WeakSet[BinaryIO] = WeakSet()
"""Locks of this process. A copy of it would hold them, too, and longer where it outlives a kill."""
os.register_at_fork(after_in_child=lambda: [lock.close() for lock in _locks])


@contextmanager
def at_work(path: Path) -> Iterator[None]:
    """Hold the lock of a run folder, which ends with the process; none where files have no locks.

    Raises:
        OutputError: The folder cannot be written.
        RunError: Another run holds it.
    """
    with writing(path):
        file = (path / "events.log").open("ab")
    with file:
        _locks.add(file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                "is at work in another process",
                where=str(path),
                hint="Wait for its end, or stop it, before you resume it",
            ) from None
        except OSError as error:
            log.debug("%s is not locked: %s", path, error)
        yield


@contextmanager
def recorded(folder: RunFolder, reporter: Reporter) -> Iterator[None]:
    """Send every warning of the run to events.log, and fedsim's own to the terminal as well."""
    flower, python = logging.getLogger("flwr"), logging.getLogger("py.warnings")
    terminal = _Terminal(reporter)
    before = flower.handlers, flower.level
    flower.handlers, flower.propagate = [], False
    flower.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    sink = EventLog(folder)
    for logger in (log, flower, python):
        logger.addHandler(sink)
    log.addHandler(terminal)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for logger in (log, flower, python):
            logger.removeHandler(sink)
        log.removeHandler(terminal)
        flower.handlers, flower.level = before


class EventLog(logging.Handler):
    """Sends warnings and worse to a run's events.log."""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(logging.WARNING)
        self.folder = folder
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Append a line."""
        try:
            self.folder.event(record.levelname, self.format(record))
        except OutputError:
            self.handleError(record)  # logging's own way: shown on stderr, the caller goes on


class _Terminal(logging.Handler):
    """Shows warnings on the terminal, but only the first few of failing clients."""

    shown_failures = 3

    def __init__(self, reporter: Reporter) -> None:
        super().__init__(logging.WARNING)
        self.reporter = reporter
        self.failures = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.failures += record.name == "fedsim.clients"
        if record.name != "fedsim.clients" or self.failures <= self.shown_failures:
            self.reporter.message(f"{record.levelname.lower()}: {record.getMessage()}")
        elif self.failures == self.shown_failures + 1:
            self.reporter.message("further failures of clients are in events.log")


@contextmanager
def polite_interrupt(reporter: Reporter) -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C or SIGTERM wait for the end of a round; the second one stops at once.

    Yields:
        A function that says whether the run should stop.
    """
    asked = threading.Event()

    def ask(signum: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        reporter.message("stopping after this round; a second signal (Ctrl-C) stops at once")

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set  # only the main thread can hear signals
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
