"""Runs the command ``fedsim``: in this process, or really."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedsim import cli


class Command:
    """Runs ``fedsim`` in this process, through its entry point, in an empty folder, offline."""

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
    ) -> None:
        from datasets import config
        from huggingface_hub import constants

        self.monkeypatch, self.capfd = monkeypatch, capfd
        monkeypatch.chdir(folder)
        monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        self.monkeypatch.setattr(sys, "argv", ["fedsim", *arguments])
        self.monkeypatch.setattr(sys, "path", list(sys.path))
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code
        captured = self.capfd.readouterr()
        return code, captured.out, captured.err

    def prints(self, *arguments: str) -> str:
        """Standard output of a command that works."""
        code, out, err = self(*arguments)
        assert code == 0, err
        return out

    def refuses(self, *arguments: str, code: int = 2) -> str:
        """The paragraph on standard error, without its first word."""
        got, _, err = self(*arguments)
        assert got == code, err
        assert err.startswith("fedsim: ")
        assert err.endswith((".\n", "?\n"))
        assert err.count("\n") == 1, "one paragraph, on one line"
        assert "Traceback" not in err
        return err.removeprefix("fedsim: ")


def real(folder: Path, *command: str) -> subprocess.CompletedProcess:
    """Run a real process that can import fedsim and the tests."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
