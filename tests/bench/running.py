"""Run one peer on one work in a fresh process, and leave nothing of it behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench import pfl_environment
from tests.bench.machine import cores
from tests.bench.works import WARM_UP, Work

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 900
COMMAND_ROUNDS = 100
ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}
Command = Callable[[Work, int], list[str]]


def _module(peer: str, *options: str) -> Command:
    def command(work: Work, rounds: int) -> list[str]:
        return [sys.executable, "-m", f"tests.bench.peers.{peer}", *_what(work, rounds), *options]

    return command


def _what(work: Work, rounds: int, workers: int | None = None) -> list[str]:
    return [work.name, "--rounds", str(rounds), "--workers", str(workers or cores())]


def _pfl(work: Work, rounds: int) -> list[str]:
    return [
        str(pfl_environment.python()),
        *("-m", "tests.bench.peers.pfl"),
        *_what(work, rounds),
    ]


def _pfl_processes(work: Work, rounds: int) -> list[str]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={cores()}"]
    return [
        str(pfl_environment.python()),
        *torchrun,
        *("-m", "tests.bench.peers.pfl"),
        *_what(work, rounds, workers=1),
    ]


PEERS: dict[str, Command] = {
    "bare": _module("bare"),
    "fedsim": _module("fedsim"),
    "flower": _module("flower"),
    "pfl": _pfl,
    "pfl_processes": _pfl_processes,
}
"""Everything that runs a work, in the order of one repeat."""


def with_option(name: str) -> Command:
    """fedsim with one of ``options.OPTIONS``."""
    return _module("fedsim", "--option", name)


INLINE = _module("fedsim", "--backend", "inline")


@dataclass(frozen=True)
class Outcome:
    """What came of one program: a result or the reason why there is none.

    Attributes:
        elapsed_s: From command to exit.
    """

    result: dict[str, Any] | None
    reason: str
    elapsed_s: float


def run_peer(command: Command, work: Work, rounds: int) -> Outcome:
    """Run a work's rounds, warm-up first."""
    try:
        line = command(work, rounds + WARM_UP)
    except RuntimeError as error:  # its environment cannot be made
        return Outcome(None, str(error), 0.0)
    return run(line)


def run_command(work: Work) -> Outcome:
    """``fedsim run`` on the work's scenario, as typed into a shell; only its time counts.

    In one process, as one would choose for so small a work: Ray alone takes longer to start.
    """
    from fedsim.scenario import Scenario
    from tests.bench.peers.fedsim import scenario

    values = scenario(work, COMMAND_ROUNDS, 1, backend="inline")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "scenario.yaml"
        file.write_text(Scenario.model_validate(values).to_yaml())
        line = [sys.executable, "-m", "fedsim", "run", str(file), "--out", folder]
        return run(line, prints_result=False)


def run(line: list[str], prints_result: bool = True) -> Outcome:
    """Run a program in a session of its own; whatever it leaves behind is ended."""
    tag = f"bench-{uuid.uuid4().hex}"
    started = time.time()
    environment = os.environ | ENVIRONMENT | {"BENCH_STARTED": str(started), "BENCH_TAG": tag}
    process = subprocess.Popen(
        line,
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        _end_all(tag)
        process.communicate()
        return Outcome(None, f"no end after {TIMEOUT_S} s", time.time() - started)
    except BaseException:
        _end_all(tag)
        raise
    elapsed = time.time() - started
    _end_all(tag)
    if process.returncode:
        return Outcome(None, _reason(err) or f"exit code {process.returncode}", elapsed)
    result = json.loads(_last_line(out)) if prints_result else {}
    return Outcome(result, "", elapsed)


def _reason(errors: str) -> str:
    """The last line that names an exception; torchrun prints a summary below it."""
    named = [line for line in errors.splitlines() if re.match(r"(\[\w+\]: *)?[\w.]*Error\b", line)]
    return named[-1] if named else _last_line(errors)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _end_all(tag: str) -> None:
    """End every process that carries the tag in its environment: Ray leaves some behind."""
    wanted = f"BENCH_TAG={tag}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or belongs to somebody else
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                os.kill(int(folder.name), signal.SIGKILL)
