"""The wheel holds one top-level package and works away from the source."""

import os
import shutil
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def sh(*command: str | Path, cwd: Path, **env: str) -> str:
    full = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | env
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, env=full, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    source = tmp_path_factory.mktemp("source") / "fedsim"
    leave = shutil.ignore_patterns(".venv", ".git", "runs", "__pycache__", "build", "*.egg-info")
    shutil.copytree(ROOT, source, symlinks=True, ignore=leave)
    out = tmp_path_factory.mktemp("wheel")
    sh(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", out, source, cwd=out)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def clean(wheel, tmp_path_factory):
    """An environment with the wheel, and the dependencies of this one behind it."""
    folder = tmp_path_factory.mktemp("clean")
    sh(sys.executable, "-m", "venv", folder, cwd=folder)
    python = folder / "bin" / "python"
    sh(python, "-m", "pip", "install", "-q", "--no-deps", wheel, cwd=folder)
    packages = next((folder / "lib").glob("python*/site-packages"))
    # A path line is searched last and its own .pth files (an editable fedsim) are not read.
    (packages / "dependencies.pth").write_text(site.getsitepackages()[0] + "\n")
    return folder


def test_the_wheel_has_one_top_level_name_and_every_file(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        top = next(n for n in names if n.endswith("top_level.txt"))
        assert archive.read(top).decode().split() == ["fedsim"]
    assert {n.split("/")[0] for n in names} == {"fedsim", top.split("/")[0]}
    for folder in ("strategies", "clients", "scenarios", "dashboards", "fedsim"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".yaml") and not any(p.is_symlink() for p in path.parents):
                relative = path.relative_to(ROOT)
                inside = relative if folder == "fedsim" else Path("fedsim") / relative
                assert str(inside) in names


def test_pip_lists_nothing_outside_the_package(clean):
    listed = sh(clean / "bin" / "python", "-m", "pip", "show", "-f", "fedsim-ft", cwd=clean)
    files = [line.strip() for line in listed.split("Files:\n")[1].splitlines() if line.strip()]
    outside = [f for f in files if not f.startswith(("fedsim/", "fedsim_ft-"))]
    assert outside == ["../../../bin/fedsim"]


def test_the_wheel_runs_the_quickstart_from_another_directory(clean, tmp_path):
    python = clean / "bin" / "python"
    where = sh(python, "-c", "import fedsim; print(fedsim.__file__)", cwd=tmp_path)
    assert where.startswith(str(clean))
    command = ["run", "quickstart", "num_rounds=1", "model.warm_start.epochs=1"]
    out = sh(clean / "bin" / "fedsim", *command, cwd=tmp_path)
    assert "report:" in out
    assert list((tmp_path / "runs" / "quickstart").glob("*/report.html"))
