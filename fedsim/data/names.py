"""The partitioners' names, read from source files: importing them takes seconds."""

from __future__ import annotations

import ast
import importlib.util
import re
from functools import cache
from pathlib import Path

from fedsim.registry import Entry


@cache
def classes() -> dict[str, tuple[str, str]]:
    """Class name and summary of flwr-datasets' partitioners, by snake-case name."""
    spec = importlib.util.find_spec("flwr_datasets")
    assert spec is not None
    assert spec.origin is not None
    found = {}
    for path in sorted((Path(spec.origin).parent / "partitioner").glob("*_partitioner.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name.endswith("Partitioner"):
                found[path.stem.removesuffix("_partitioner")] = (node.name, _summary(node))
    return found


@cache
def available() -> dict[str, Entry]:
    """The partitioners that split rows, by name, with the lazy ones."""
    found = {
        name: Entry(name, summary)
        for name, (_, summary) in classes().items()
        if not name.startswith("vertical")
    }
    source = Path(__file__).with_name("lazy.py").read_text(encoding="utf-8")
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and "LazyPartitioner" in map(ast.unparse, node.bases):
            name = re.sub(r"(?<!^)(?=[A-Z])", "_", node.name).lower()
            found[name] = Entry(name, _summary(node))
    return found


def _summary(node: ast.ClassDef) -> str:
    return (ast.get_docstring(node) or "").split("\n", 1)[0]
