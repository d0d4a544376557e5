"""What Ray runs, in place of its own ``setup_worker.py``, to start a worker: asks the fork server.

A program that loads nothing. Where no copy can do, as for a worker with an environment of its own
or without the server, it goes on as Ray's own.
"""

import json
import os
import socket
import sys

SERVER = "FEDSIM_FORK_SERVER"
"""Environment variable with the server's address."""
PYTHON = "--language=PYTHON"
"""Told to Ray's ``setup_worker.py``, not to the worker."""
DONE = b"+"
"""The server's answer when the copy is made."""


def main() -> None:
    """Ask for a copy that runs Ray's worker with this process's arguments, folder and output."""
    arguments = sys.argv[1:]
    worker = next(a for a in arguments if a.endswith(".py"))
    own_environment = any(a.startswith("--serialized-runtime-env-context") for a in arguments)
    if arguments[0] == worker and PYTHON in arguments and not own_environment:
        try:
            ask([a for a in arguments if a != PYTHON])
            return
        except OSError:
            pass  # the server has ended
    own = os.path.join(os.path.dirname(worker), "setup_worker.py")
    os.execv(sys.executable, [sys.executable, own, *arguments])


def ask(arguments: list[str]) -> None:
    """Hand over a program's arguments; its process is the server's child.

    Raises:
        OSError: The server is not there, or ends before it has made a copy.
    """
    wanted = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(os.environ[SERVER])
        message = json.dumps(wanted).encode()
        socket.send_fds(server, [message[:1]], [0, 1, 2])
        server.sendall(message[1:])
        server.shutdown(socket.SHUT_WR)
        if server.recv(1) != DONE:
            raise ConnectionError("the server has made no copy")


if __name__ == "__main__":
    main()
