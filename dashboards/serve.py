"""Starts the live app: a Streamlit server for this machine only."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from fedsim.errors import OutputError
from fedsim.results import find_runs

HOST = "127.0.0.1"
SCRIPT = Path(__file__).parent / "app" / "main.py"
OPTIONS = {
    "server.address": HOST,
    "server.fileWatcherType": "none",
    "server.showEmailPrompt": "false",
    "browser.serverAddress": HOST,
    "browser.gatherUsageStats": "false",
    "client.toolbarMode": "minimal",
    "client.showErrorLinks": "false",
    "runner.magicEnabled": "false",
    "global.developmentMode": "false",
    "logger.hideWelcomeMessage": "true",
    "logger.level": "error",
}
"""Streamlit's settings: loopback only, no telemetry, no links out."""


def serve(paths: Sequence[str], port: int, headless: bool) -> None:
    """Serve the app until Ctrl-C.

    Args:
        paths: Run folders, folders above some, or patterns; new runs below them appear.
        port: On the loopback interface.
        headless: Do not open a browser.

    Raises:
        OutputError: Streamlit is not installed, the port is taken, or there is no run.
    """
    command = arguments(paths, port, headless)
    from streamlit.web.cli import main

    from fedsim.dashboards.app import ahead

    ahead.begin(paths)
    print(f"dashboard: http://{HOST}:{port} (Ctrl-C ends it)", flush=True)
    main(command, standalone_mode=False)


def arguments(paths: Sequence[str], port: int, headless: bool) -> list[str]:
    """What ``streamlit`` is told; refuses what cannot work."""
    if find_spec("streamlit") is None:
        raise OutputError(
            "the dashboard needs Streamlit, which is not installed",
            hint="Try pip install 'fedsim-ft[dashboard]', or `fedsim report` for a page without it",
        )
    for path in paths:
        _check_runs(path)
    _check_port(port)
    options = OPTIONS | {"server.port": str(port), "server.headless": str(headless).lower()}
    flags = [f"--{name}={value}" for name, value in options.items()]
    flags += [f"--server.allowedHosts={host}" for host in (HOST, "localhost")]
    return ["run", str(SCRIPT), *flags, "--", *paths]


def _check_runs(path: str) -> None:
    """Refuse a path without a run; what is there is read later."""
    from fedsim.dashboards.app import loading

    if not loading.stamps([path]):
        find_runs([path])  # says what is wrong


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise OutputError(
                f"port {port} cannot be used: {error.strerror}",
                hint=f"Try another one, such as --port {port + 1}",
            ) from error
