"""Every block of the README does what it says."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fedsim.scenario import load

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
SMALL = [
    "num_rounds=1",
    "engine.backend=inline",
    "model.warm_start.epochs=1",
    "clients_per_round=2",
]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def small(line: str) -> list[str]:
    """A command of the README, run with this Python and with small settings."""
    words = shlex.split(line)
    if words[0] == "fedsim":
        more = SMALL if words[1] == "run" else []
        return [sys.executable, "-m", "fedsim", *words[1:], *more]
    if words[0] == "pytest":
        return [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words[1:]]
    raise AssertionError(f"the README has a command that this test does not know: {line}")


def test_the_readme_has_blocks_of_each_kind():
    assert len(blocks("bash")) >= 5
    assert blocks("yaml")
    assert len(blocks("python")) >= 2


@pytest.mark.slow
def test_the_commands_and_python_blocks_work_in_order(tmp_path):
    for block in blocks("bash") + blocks("python"):
        lines = block.splitlines() if block in blocks("bash") else []
        commands = [small(line) for line in lines] or [[sys.executable, "-c", block]]
        for command in commands:
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 0, (command, done.stdout, done.stderr)
    assert (tmp_path / "report.html").stat().st_size > 1_000_000


def test_the_yaml_block_is_a_valid_scenario(tmp_path):
    for block in blocks("yaml"):
        file = tmp_path / "reviews.yaml"
        file.write_text(block)
        assert load(file).num_clients == 50


def test_links_and_make_targets_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (ROOT / target).is_file(), target
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^|`)make (\w+)", TEXT, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
