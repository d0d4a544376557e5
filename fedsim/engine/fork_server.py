"""A fork server: a copy of this process that has loaded the libraries, and is copied again.

torch, transformers and what they need take seconds of a core to import, in every process. A copy
costs milliseconds, and its memory is shared until it is written to. Ray starts the workers of a
node through ``fork_client.py``, which asks here for a copy that becomes the worker. The fork server
of multiprocessing makes processes for its own program only, not for Ray, and starts from nothing.

Not everything survives copying: other threads of Python, OpenMP's threads, what the driver of a GPU
was asked. Ray itself reads a worker's settings when it is imported, which must be after the copy.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from threadpoolctl import threadpool_limits

from fedsim.engine import fork_client
from fedsim.loading import loading

_BACKLOG = 128
"""How many workers may ask while the server still loads."""
_OOM_SCORE = "1000"
"""As Ray's for workers: when memory is short, they are ended before the run's own process is."""


def is_safe() -> bool:
    """Whether copies of this process work: on Linux, with one thread, before Ray is loaded."""
    alone = threading.active_count() == 1
    return sys.platform == "linux" and alone and "ray" not in sys.modules


class ForkServer:
    """A copy of this process that loads ``modules`` and then waits to be copied.

    It ends with this process, however that ends; the copies are Ray's to end.

    Attributes:
        address: Socket on which it listens, in a folder that only this user can enter.

    Raises:
        OSError: There is no place for the socket, or no memory for the copy.
    """

    def __init__(self, modules: Sequence[str]) -> None:
        folder = Path(tempfile.mkdtemp(prefix="fedsim-"))
        self.address = folder / "fork"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.address))
            listener.listen(_BACKLOG)
            alive, self._end_of_file = os.pipe()
            if _fork() == 0:
                os.close(self._end_of_file)
                _end(_serve, folder, listener, alive, modules)
        os.close(alive)
        atexit.register(shutil.rmtree, folder, ignore_errors=True)  # the server may be killed


def _serve(folder: Path, listener: socket.socket, alive: int, modules: Sequence[str]) -> None:
    os.setsid()  # an interrupt from the keyboard is for the run's own process
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):  # who reads the run's output waits for its end
        os.dup2(nowhere, standard)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)
    with loading():
        for name in modules:
            with suppress(Exception):  # the worker that needs it says so
                importlib.import_module(name)
    threadpool_limits(1)  # OMP_NUM_THREADS, which Ray sets for a worker, comes too late here
    gc.enable()  # it rested in the process that was copied, too
    gc.freeze()  # a collection would write to what the copies share
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how copies ended
    while True:
        ready, _, _ = select.select([listener.fileno(), alive], [], [])
        if alive in ready:
            break
        connection, _ = listener.accept()
        with connection, suppress(OSError, ValueError):
            connection.settimeout(10)
            wanted, standards = _receive(connection)
            if _fork() == 0:
                listener.close()
                connection.close()
                os.close(alive)
                _end(_become, wanted, standards)
            for descriptor in standards:
                os.close(descriptor)
            connection.sendall(fork_client.DONE)
    shutil.rmtree(folder, ignore_errors=True)


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """What a copy is to run, and its standard input, output and error."""
    message, standards, _, _ = socket.recv_fds(connection, 1, 3)
    while part := connection.recv(1 << 16):
        message += part
    return json.loads(message), standards


def _become(wanted: dict[str, Any], standards: Sequence[int]) -> None:
    """Run a Python program in this copy as if it had been started so."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for standard, descriptor in enumerate(standards):
        os.dup2(descriptor, standard)
        os.close(descriptor)
    atexit._clear()  # what the copied process meant to do at its own end
    environment = wanted["environment"]
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    # What is equal stays in its place: Ray writes the process's title over it, or shows none where
    # this program had moved it, as datasets does to load something.
    os.environ.update(environment.items() - os.environ.items())
    os.chdir(wanted["folder"])
    sys.argv = wanted["arguments"]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()


def _fork() -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        # Later Pythons warn where there are threads: those of BLAS and Arrow provide for copies.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _end(work: Any, *arguments: Any) -> NoReturn:
    """Do this copy's work and end it, without what the copied process meant to do at its end."""
    code = 0
    try:
        work(*arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
