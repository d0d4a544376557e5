"""The layout is what the documentation says: packages, links, and imports that point one way."""

import ast
import doctest
import importlib
import pkgutil
import tomllib
from pathlib import Path

import pytest

import fedsim

ROOT = Path(__file__).parents[1]
PLUGINS = ("strategies", "clients", "scenarios", "dashboards")
SOURCES = [p for d in ("fedsim", *PLUGINS) for p in sorted((ROOT / d).rglob("*.py"))]
OWN = [p for p in SOURCES if not any(part.is_symlink() for part in (p, *p.parents))]
MODULES = [m.name for m in pkgutil.walk_packages(fedsim.__path__, "fedsim.")]

LAYERS = [
    {"_version", "errors", "units", "shapes", "loading"},
    {"arrays", "seeds", "layers", "wording", "registry", "records", "cache", "trees", "sections"},
    {"trials", "curvature", "bitstrings"},
    {"directions", "directions_cpu", "directions_torch", "seedpool", "projection", "catchup"},
    {"payload", "codec", "chain", "lgreco"},
    {"availability", "devices", "clock", "selection", "selectors"},
    {"partners", "scenario"},
    {"results", "models", "data"},
    {"codecs", "feedback", "wire", "task", "differences", "comparison", "fitting", "progress"},
    {"compare", "client_table"},
    {"tasks", "client", "cost", "strategy", "event_strategy"},
    {"engine", "ledger", "checkpoint", "events"},
    {"assembly"},
    {"tables", "tracking", "trackers"},
    {"notebook", "exporting", "simulation", "listing", "plan", "playing", "probe", "templates"},
    {"sweep"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
"""A core module imports from its own row or the rows above it (type checking aside)."""


def imports(path: Path) -> set[str]:
    """Modules of fedsim that a file imports when it runs, those inside functions included."""
    found: set[str] = set()

    class Visitor(ast.NodeVisitor):
        def visit_If(self, node: ast.If) -> None:
            if "TYPE_CHECKING" not in ast.unparse(node.test):
                self.generic_visit(node)

        def visit_Import(self, node: ast.Import) -> None:
            found.update(alias.name for alias in node.names)

        def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
            if node.module == "fedsim":
                found.update(f"fedsim.{alias.name}" for alias in node.names)
            elif node.module:
                found.add(node.module)

    Visitor().visit(ast.parse(path.read_text(encoding="utf-8")))
    return {name for name in found if name.split(".")[0] == "fedsim" and name != "fedsim"}


def room(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return relative.parts[1].removesuffix(".py") if relative.parts[0] == "fedsim" else ""


def test_links_and_mapping_put_the_plugin_folders_below_fedsim():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    mapping = project["tool"]["setuptools"]["package-dir"]
    for name in PLUGINS:
        link = ROOT / "fedsim" / name
        assert link.is_symlink()
        assert link.readlink() == Path("..") / name
        assert mapping[f"fedsim.{name}"] == name
    packages = set(project["tool"]["setuptools"]["packages"])
    folders = {
        ".".join(("fedsim", *p.parent.relative_to(ROOT).parts)).replace("fedsim.fedsim", "fedsim")
        for p in OWN
    }
    assert packages == folders


def test_core_imports_no_plugin_by_module():
    allowed = {"cli", "commands", "notebook"}  # these show figures
    for path in OWN:
        if path.relative_to(ROOT).parts[0] == "fedsim" and room(path) not in allowed:
            named = {n.split(".")[1] for n in imports(path)}
            assert not named & set(PLUGINS), path


def test_core_imports_point_one_way():
    level = {name: i for i, row in enumerate(LAYERS) for name in row}
    for path in OWN:
        here = room(path)
        if not here or here == "__init__":
            continue
        for name in imports(path):
            there = name.split(".")[1]
            if there not in PLUGINS:
                assert level[there] <= level[here], f"{path} imports {name}"


@pytest.mark.parametrize("kind", ["strategies", "clients"])
def test_plugins_import_contracts_and_siblings_only(kind):
    contracts = {"arrays", "client", "codec", "cost", "errors", "seeds", "strategy", "task", kind}
    contracts |= {"directions", "event_strategy", "seedpool", "projection", "catchup"}
    for path in (ROOT / kind).rglob("*.py"):
        assert {n.split(".")[1] for n in imports(path)} <= contracts, path


def test_dashboards_read_run_folders_only():
    readers = {"compare", "differences", "records", "results", "units", "errors", "dashboards"}
    readers |= {"_version", "client_table", "comparison"}
    for path in (ROOT / "dashboards").rglob("*.py"):
        assert {n.split(".")[1] for n in imports(path)} <= readers | {"tables"}, path


def test_only_the_task_knows_the_model_libraries():
    rooms = {"task", "tasks", "models", "data"}
    for path in OWN:
        if room(path) in rooms:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                text = ast.unparse(node)
                for library in ("transformers", "peft", "datasets", "flwr_datasets"):
                    assert f"import {library}" not in text, path
                    assert f"from {library}" not in text, path


def test_files_and_functions_stay_readable():
    for path in [*OWN, *(ROOT / "tests").rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                size = (node.end_lineno or node.lineno) - node.lineno + 1
                assert size <= 60, f"{path}:{node.lineno} {node.name} has {size} lines"


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name):
    if name == "fedsim.__main__":
        return
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
