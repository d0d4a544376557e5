"""pfl-research's own environment: its pins differ from fedsim's, so it lies in the user's cache."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from fedsim.cache import cache_path

PFL = "pfl==0.6.0"
SAME = ("transformers", "tokenizers", "huggingface-hub", "peft", "accelerate", "safetensors")
"""Installed in the versions that run here, so that all peers train the same models."""


def python() -> Path:
    """The environment's interpreter; the environment is made when it is not there.

    Raises:
        RuntimeError: It cannot be made.
    """
    folder = cache_path("bench", PFL.replace("==", "-"))
    interpreter, ready = folder / "bin" / "python", folder / "ready"
    wanted = "\n".join([_torch(), PFL, *map(_pinned, SAME)])
    if not ready.exists() or ready.read_text() != wanted:
        print(f"making an environment for {PFL} in {folder} (takes minutes)", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        _run(sys.executable, "-m", "venv", str(folder))
        # torch by name and version first: a range would draw gigabytes of CUDA packages.
        _run(str(interpreter), "-m", "pip", "install", "-q", _torch())
        _run(str(interpreter), "-m", "pip", "install", "-q", *wanted.split("\n"))
        ready.write_text(wanted)
    return interpreter


def _torch() -> str:
    return f"torch=={metadata.version('torch').split('+')[0]}"


def _pinned(name: str) -> str:
    return f"{name}=={metadata.version(name)}"


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise RuntimeError(f"{' '.join(command[1:5])} failed: {lines[-1] if lines else ''}")
