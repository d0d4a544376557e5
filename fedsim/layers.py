"""Read YAML files with their parents and overrides into one mapping that remembers its places."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedOrderedMap, CommentedSeq, CommentedSet
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from fedsim.errors import Key, ScenarioError, did_you_mean

SHIPPED = Path(__file__).parent / "scenarios"
IDENTITY = ("name", "peft_type", "model_type")
"""A section that names another of these than its parent replaces the parent's section."""
PLUGIN_SECTIONS = {
    ("task",),
    ("client",),
    ("data", "partitioner"),
    ("devices", "selection"),
    ("devices", "availability"),
}
"""Where, beside strategies, a plain string is short for a section with that ``name``."""

CHAINS = {("codec", "up"), ("codec", "down"), ("track",)}
"""Lists of plug-ins: a section alone is short for a list of one, and replaces as a list does."""

DEVICE_FILES = (".yaml", ".yml", ".json", ".csv", ".pkl", ".pickle")
"""Endings by which a value of the section ``devices`` is a file and no name."""

MOST_LEVELS, MOST_VALUES = 50, 100_000
TOO_DEEP = f"is nested too deeply: a scenario has at most {MOST_LEVELS} levels"


@dataclass
class Layer:
    """Plain values and, for each key path, where it was written."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[Key, str] = field(default_factory=dict)

    def where(self, key: Iterable[str | int]) -> str:
        """``file:line`` of the deepest known part of a key path.

        A value alone may stand for a list of one, so a 0 may be missing from the file.
        """
        path = tuple(key)
        while path and path not in self.places:
            alone = tuple(k for k in path if k != 0)
            if alone in self.places:
                return self.places[alone]
            path = path[:-1]
        return self.places.get(path, "")


def find_scenario(path: str | Path) -> Path:
    """The file of a scenario: a path, or the name of a shipped one.

    Raises:
        ScenarioError: There is no such file.
    """
    given = Path(path)
    shipped = {p.stem: p for p in shipped_scenarios()}
    if given.is_file():
        return given
    if str(path) in shipped:
        return shipped[str(path)]
    raise ScenarioError(
        "there is no such scenario file" if not given.is_dir() else "is a folder, not a file",
        where=str(path),
        hint=did_you_mean(given.name, [p.name for p in given.parent.glob("*.yaml")])
        or did_you_mean(given.stem, shipped),
        allowed=f"Give a YAML file or a shipped scenario: {', '.join(sorted(shipped))}",
    )


def shipped_scenarios() -> list[Path]:
    """The scenario files that come with fedsim, without the parents in ``base/``."""
    return sorted(p for p in SHIPPED.glob("*.yaml"))


def read(path: Path, overrides: Iterable[str] = ()) -> Layer:
    """Read a scenario file, its parents and dotted overrides into one layer.

    Raises:
        ScenarioError: A file or an override is wrong, or an override undoes one before it.
    """
    layer = _read_file(path, ())
    given: dict[str, str] = {}
    for override in overrides:
        layer = merge(layer, _read_override(override))
        name = override.partition("=")[0].strip()
        undone = [k for k in given if k != name and not _holds(layer.values, tuple(k.split(".")))]
        if undone and name not in given:
            raise ScenarioError(
                f"leaves nothing of '{given[undone[0]]}', which stands before it: a part that is "
                "named anew keeps no options",
                where=f"override '{override}'",
                hint="Put the name first, then its options",
            )
        given[name] = override
    return layer


def depth(name: str) -> int:
    """How deep a dotted key is; one that names its section counts as the section.

    >>> depth("client.learning_rate"), depth("client.name"), depth("client")
    (2, 1, 1)
    """
    parts = name.split(".")
    return len(parts) - (parts[-1] in IDENTITY)


def merge(base: Layer, top: Layer) -> Layer:
    """``top`` over ``base``: mappings merge, anything else is replaced.

    >>> a, b = Layer({"s": {"name": "x", "k": 1}}), Layer({"s": {"name": "y"}})
    >>> merge(a, b).values
    {'s': {'name': 'y'}}
    """
    values = _merged(base.values, top.values, ())
    kept = {key: place for key, place in base.places.items() if _holds(values, key)}
    return Layer(values, {**kept, **top.places})


def _merged(base: Mapping[str, Any], top: Mapping[str, Any], path: Key) -> dict[str, Any]:
    result = dict(base)
    for name, value in top.items():
        old, here = base.get(name), (*path, name)
        if isinstance(value, Mapping) and isinstance(old, Mapping) and not _other(old, value, here):
            value = _merged(old, value, here)
        result[name] = value
    return result


def _other(base: Mapping[str, Any], top: Mapping[str, Any], path: Key) -> bool:
    """Whether two sections describe different things, so that their options do not mix."""
    if path in CHAINS and "name" in top:
        return True
    return any(key in base and key in top and base[key] != top[key] for key in IDENTITY)


def _holds(values: Any, key: Key) -> bool:
    return len(existing(values, key)) == len(key)


def existing(values: Any, key: Key) -> Key:
    """A key path without the parts that lead nowhere, such as pydantic's names of union members.

    >>> existing({"files": {"train": [3]}}, ("files", "dict[str,list]", "train", 0, "str"))
    ('files', 'train', 0)
    """
    found = []
    for part in key:
        known = range(len(values)) if isinstance(values, list) else values
        if isinstance(known, Mapping | range) and part in known:
            values = values[part]
            found.append(part)
    return tuple(found)


def _read_file(path: Path, children: tuple[Path, ...]) -> Layer:
    root = _parse(path)
    if not isinstance(root, CommentedMap):
        found = "is empty" if root is None else f"holds a {_kind(root)}"
        raise ScenarioError(
            f"the file {found}; a scenario is a mapping of keys to values",
            where=f"{path}:1",
            hint="Start from a shipped one, such as `fedsim show quickstart`",
        )
    layer = Layer()
    layer.values = _plain(root, (), f"{path}", layer.places)
    _resolve_paths(layer.values, path.parent)
    return _with_parents(layer, path, (*children, path.resolve()))


def _parse(path: Path) -> Any:
    try:
        return YAML(typ="rt").load(path.read_text(encoding="utf-8"))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = ", ".join(text for text in (error.context, error.problem) if text)
        raise ScenarioError(
            f"malformed YAML: {problem.split('To suppress')[0].strip()}",
            where=f"{path}:{mark.line + 1}" if mark else str(path),
            hint="Indent with spaces, not tabs" if "'\\t'" in problem else "",
        ) from None
    except YAMLError as error:
        raise ScenarioError(f"malformed YAML: {error}", where=str(path)) from None
    except RecursionError:
        raise ScenarioError(TOO_DEEP, where=str(path)) from None
    except UnicodeDecodeError as error:
        text = f"is not a text file: byte {error.start} is not UTF-8"
        raise ScenarioError(text, where=str(path)) from None
    except OSError as error:
        raise ScenarioError(f"cannot be read: {error.strerror}", where=str(path)) from None


def _kind(node: Any) -> str:
    return "list" if isinstance(node, list) else "plain value"


def _with_parents(layer: Layer, path: Path, children: tuple[Path, ...]) -> Layer:
    extends = layer.values.pop("extends", [])
    result = Layer()
    for i, parent in enumerate(extends if isinstance(extends, list) else [extends]):
        where = layer.where(("extends", i))
        target = _find_parent(parent, path.parent, where)
        if target.resolve() in children:
            way = " -> ".join(p.name for p in (*children, target))
            raise ScenarioError(f"'extends' goes round in a circle: {way}", where=where)
        result = merge(result, _read_file(target, children))
    return merge(result, layer)


def _find_parent(name: object, folder: Path, where: str) -> Path:
    for place in (folder, SHIPPED):
        if isinstance(name, str) and (place / name).is_file():
            return place / name
    beside = [path.name for path in folder.glob("*.yaml")]
    shipped = [path.relative_to(SHIPPED).as_posix() for path in sorted(SHIPPED.rglob("*.yaml"))]
    shipped = [path for path in shipped if not path.startswith("devices/")]
    raise ScenarioError(
        f"'extends' names {name!r}, which is no file beside this one, nor shipped",
        where=where,
        hint=did_you_mean(str(name), (*beside, *shipped)),
        allowed=f"Shipped: {', '.join(shipped)}",
    )


def _plain(node: Any, key: Key, file: str, places: dict[Key, str]) -> Any:
    if isinstance(node, str) and (key in PLUGIN_SECTIONS or set(key) == {"strategy"}):
        places[(*key, "name")] = places.get(key, file)
        return {"name": str(node)}
    _check_node(node, key, file, places)
    if isinstance(node, CommentedMap):
        for name in node:
            line = node.lc.data[name][0] + 1 if name in (node.lc.data or {}) else node.lc.line + 1
            places[(*key, str(name))] = f"{file}:{line}"
        return {str(k): _plain(v, (*key, str(k)), file, places) for k, v in node.items()}
    if isinstance(node, CommentedSeq):
        for i in range(len(node)):
            places[(*key, i)] = f"{file}:{node.lc.item(i)[0] + 1}"
        return [_plain(v, (*key, i), file, places) for i, v in enumerate(node)]
    if isinstance(node, bool) or node is None:
        return node
    for kind in (str, int, float):
        if isinstance(node, kind):
            return kind(node)
    return str(node)  # dates and other YAML types


def _check_node(node: Any, key: Key, file: str, places: dict[Key, str]) -> None:
    """Refuse what is no mapping, list or plain value, and what aliases make endless."""
    tag = getattr(getattr(node, "tag", None), "value", None)
    where = places.get(key, file)
    if isinstance(node, CommentedSet | CommentedOrderedMap) or tag:
        raise ScenarioError(
            f"YAML tags such as {tag or 'this one'} have no meaning in a scenario",
            where=where,
            hint="Leave the tag out; quote text that looks like a number",
        )
    if len(key) > MOST_LEVELS:
        raise ScenarioError(TOO_DEEP, where=where)
    if len(places) > MOST_VALUES:
        raise ScenarioError(
            f"has more than {MOST_VALUES:,} values", where=file, hint="Do its aliases multiply?"
        )


def _read_override(text: str) -> Layer:
    name, equals, value = text.partition("=")
    place = f"override '{text}'"
    if not equals or not all(name.strip().split(".")):
        raise ScenarioError("an override is written key=value or a.b=value", where=place)
    try:
        node = YAML(typ="rt").load(value) if value.strip() else None
    except (YAMLError, RecursionError):
        raise ScenarioError(
            "the value is not YAML", where=place, hint="Close its brackets, or quote it"
        ) from None
    key = tuple(name.strip().split("."))
    if key[0] == "extends":
        raise ScenarioError("'extends' is for files, not for overrides", where=place)
    inner: dict[Key, str] = {}
    nested = _plain(node, key, "", inner)
    written = (*(key[: i + 1] for i in range(len(key))), *inner)
    layer = Layer(places=dict.fromkeys(written, place))
    for part in reversed(key):
        nested = {part: nested}
    layer.values = nested
    _resolve_paths(layer.values, Path())
    return layer


def _resolve_paths(values: dict[str, Any], folder: Path) -> None:
    """Make relative data paths absolute: beside the scenario file, else the current folder."""
    data, model, devices = values.get("data"), values.get("model"), values.get("devices")
    if isinstance(data, dict):
        for key in ("data_files", "data_dir"):
            if key in data:
                data[key] = _resolved(data[key], folder)
    if isinstance(model, dict) and str(model.get("name", "")).startswith(("./", "../", "~")):
        model["name"] = _resolved(model["name"], folder)
    if isinstance(devices, dict):
        _resolve_devices(devices, folder)


def _resolve_devices(devices: dict[str, Any], folder: Path) -> None:
    availability = devices.get("availability")
    mix = devices.get("mix")
    for section in (devices, availability, *(mix if isinstance(mix, list) else [])):
        for key in ("table", "file", "profile", "network", "base"):
            value = section.get(key) if isinstance(section, dict) else None
            is_file = isinstance(value, str) and Path(value).suffix in DEVICE_FILES
            if is_file and isinstance(section, dict):
                section[key] = _resolved(value, folder)


def _resolved(value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        return {k: _resolved(v, folder) for k, v in value.items()}
    if isinstance(value, list):
        return [_resolved(v, folder) for v in value]
    if not isinstance(value, str) or "://" in value:
        return value
    path = os.path.expanduser(value)
    beside = os.path.join(glob.escape(str(folder)), path)
    return str((folder / path if glob.glob(beside) else Path(path)).absolute())
