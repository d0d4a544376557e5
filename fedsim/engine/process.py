"""What surrounds work in a process: global generators, a time limit, the memory it takes."""

from __future__ import annotations

import faulthandler
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from fedsim.errors import ClientError, ScenarioError


@contextmanager
def preserved_generators() -> Iterator[None]:
    """Leave the global generators of Python, NumPy and torch as they were."""
    import random

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


GRACE_S = 2.0
"""How long compiled code may go on after its time is up, before its process is ended."""


@contextmanager
def time_limit(seconds: float | None, expendable: bool = False) -> Iterator[None]:
    """Raise ``ClientError`` in code that works longer.

    Compiled code is stopped when it returns. If it does not, an ``expendable`` process ends.

    Raises:
        ScenarioError: This thread gets no signals.
    """
    if seconds is None:
        yield
        return
    if threading.current_thread() is not threading.main_thread():
        raise ScenarioError(
            "time limits are signals, and only the main thread of a process gets them",
            key=("engine", "client_timeout_s"),
            hint="Run in the main thread, or with engine.backend: ray",
        )
    if expendable:
        faulthandler.dump_traceback_later(seconds + GRACE_S, exit=True, file=2)
    before = signal.signal(signal.SIGALRM, _expire)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again, where it was swallowed
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except _TimeUp:
        raise ClientError(f"worked longer than engine.client_timeout_s = {seconds:g}") from None
    finally:
        signal.signal(signal.SIGALRM, before)
        if expendable:
            faulthandler.cancel_dump_traceback_later()


class _TimeUp(BaseException):
    """Not an ``Exception``, so that a client's ``except Exception`` lets it through."""


def _expire(signum: int, frame: Any) -> None:
    raise _TimeUp


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
