"""Facts about the machine, and whether anybody else is using it."""

from __future__ import annotations

import os
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from fedsim._version import __version__

LIBRARIES = ("flwr", "ray", "torch", "transformers", "peft", "datasets", "numpy")
BUSY = 0.15
"""Share of the cores that may be in use while the machine still counts as quiet."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def facts() -> dict[str, Any]:
    """What to know when comparing with numbers from elsewhere."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _cpu_model(),
        "cores": cores(),
        "memory_gib": round(memory / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {"fedsim": __version__, **{name: metadata.version(name) for name in LIBRARIES}},
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def wait_until_quiet(patience_s: float) -> float:
    """Wait for others to finish, at most this long; returns the share of the cores in use."""
    give_up = time.monotonic() + patience_s
    while (share := _busy_share()) > BUSY and time.monotonic() < give_up:
        time.sleep(2.0)
    return round(share, 2)


def _busy_share(seconds: float = 1.0) -> float:
    before = _jiffies()
    time.sleep(seconds)
    idle, total = (b - a for a, b in zip(before, _jiffies(), strict=True))
    return 1.0 - idle / total if total else 0.0


def _jiffies() -> tuple[int, int]:
    stat = Path("/proc/stat")
    if not stat.exists():  # not Linux: nothing is known, so nothing is waited for
        return 0, 0
    values = [int(x) for x in stat.read_text().split("\n", 1)[0].split()[1:9]]
    return values[3] + values[4], sum(values)
