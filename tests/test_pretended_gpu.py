"""Models elsewhere than on the CPU: see ``tests.pretended_gpu``."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fedsim import registry


@pytest.mark.slow
def test_everything_computes_where_the_model_is():
    """In a process of its own: torch takes such a device once and for all."""
    command = [sys.executable, "-m", "tests.pretended_gpu"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = {}
    for line in done.stdout.splitlines():
        found |= json.loads(line)
    whole = {name: found.pop(name) for name in [*registry.available("clients"), "replay of seeds"]}
    assert set(whole.values()) == {"same bits"}, whole
    assert len(found) >= 5
    assert set(found.values()) <= {"same bits", "same loss"}, found
