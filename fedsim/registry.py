"""Find plug-ins by name, describe their options, build them.

A plug-in's name is a file of its kind's package (``fedavgm`` is ``strategies/fedavgm.py``), an
entry point of the group ``fedsim.<kind>``, or ``module:attribute`` anywhere on the path.
Nothing here imports a plug-in before it is asked for.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoints, entry_points
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast, get_type_hints

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from fedsim import wording
from fedsim.errors import FedsimError, PluginError, did_you_mean

CONTRACTS = {
    "strategies": ("flwr.serverapp.strategy:Strategy",),
    "clients": ("fedsim.client:ClientMethod", "flwr.clientapp:ClientApp"),
    "codecs": ("fedsim.codec:Codec",),
    "feedback": ("fedsim.codec:Feedback",),
    "tasks": ("fedsim.task:Objective",),
    "selectors": ("fedsim.selection:Selector",),
    "trackers": ("fedsim.tracking:Tracker",),
}
"""What a plug-in of each kind must be an instance of."""
KINDS = tuple(CONTRACTS)
"""Kinds of plug-in; each is a package ``fedsim.<kind>`` and an entry-point group."""


@dataclass(frozen=True)
class Entry:
    """One available plug-in: its name and the first line of its documentation."""

    name: str
    summary: str


@cache
def available(kind: str) -> dict[str, Entry]:
    """The plug-ins of a kind by name, read from the files without importing them."""
    found = {}
    for path in sorted(_folder(kind).glob("*.py")):
        if not path.stem.startswith("_"):
            doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            found[path.stem] = Entry(path.stem, doc.split("\n", 1)[0])
    for point in _installed(kind):
        found[point.name] = Entry(point.name, f"from {point.value}")
    return found


@cache
def _installed(kind: str) -> EntryPoints:
    return entry_points(group=f"fedsim.{kind}")


def _folder(kind: str) -> Path:
    return Path(__file__).parent / kind


def find(kind: str, name: str) -> Any:
    """The object behind a plug-in name: a class, a function, or an instance.

    Raises:
        PluginError: No such plug-in, it cannot be imported, or it is of another kind; ``key`` is
            ``("name",)``.
    """
    try:
        target = _find(kind, name)
        check_kind(kind, name, target)
    except PluginError as error:
        error.key = ("name",)
        raise
    return target


def _find(kind: str, name: str) -> Any:
    if ":" in name:
        return import_object(name)
    for point in _installed(kind):
        if point.name == name:
            return import_object(point.value)
    if name not in available(kind):
        raise PluginError(
            f"there is no {kind_label(kind)} called '{name}'",
            hint=did_you_mean(name, available(kind)),
            allowed=f"Known: {', '.join(available(kind))}; or module:Class",
        )
    return _plugin_class(f"fedsim.{kind}.{name}")


def check_kind(kind: str, name: str, target: Any) -> None:
    """Refuse a plug-in that cannot be one of its kind; what a function makes is seen later.

    Raises:
        PluginError: The class, or the instance, does not fulfil the kind's contract.
    """
    if inspect.isfunction(target):
        return
    made = target if inspect.isclass(target) else type(target)
    if any(issubclass(made, import_object(contract)) for contract in CONTRACTS[kind]):
        return
    raise PluginError(
        f"'{name}' is no {kind_label(kind)}",
        allowed=f"It must be a {' or a '.join(CONTRACTS[kind])}",
    )


def check_installed(target: Any) -> None:
    """Refuse a plug-in that stands on a package which is not installed.

    Args:
        target: Its class; ``needs`` names the modules, ``extra`` the extra of fedsim with them.

    Raises:
        PluginError: The message names the extra.
    """
    absent = [name for name in getattr(target, "needs", ()) if find_spec(name) is None]
    if absent:
        raise PluginError(
            f"{target.__name__} needs {', '.join(absent)}, which is not installed",
            hint=f"Try pip install 'fedsim-ft[{target.extra}]'" if target.extra else "",
        )


def import_object(target: str) -> Any:
    """Import ``module:attribute``.

    Raises:
        PluginError: The module or the attribute does not exist, or importing it raised.
    """
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute or module_name.startswith("."):
        raise PluginError(f"'{target}' is not of the form module:attribute")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise _import_error(module_name, error) from error
    if not hasattr(module, attribute):
        raise PluginError(
            f"module '{module_name}' has no '{attribute}'",
            hint=did_you_mean(attribute, getattr(module, "__all__", dir(module))),
        )
    return getattr(module, attribute)


def _import_error(module_name: str, error: BaseException) -> PluginError:
    absent = isinstance(error, ModuleNotFoundError) and module_name.startswith(error.name or "?")
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = "" if absent or isinstance(error, SyntaxError) else f", {frame.filename}:{frame.lineno}"
    return PluginError(
        f"cannot import '{module_name}': {type(error).__name__}: {error}{place}",
        hint="Is the module installed, or does its file lie in the current folder?"
        if absent
        else "Mend the module: importing it runs it",
    )


def _plugin_class(module_name: str) -> type:
    module = importlib.import_module(module_name)
    own = [
        member
        for member in vars(module).values()
        if inspect.isclass(member)
        and member.__module__ == module_name
        and not member.__name__.startswith("_")
        and not inspect.isabstract(member)
        and getattr(member, "is_plugin", False)
    ]
    if len(own) != 1:
        raise PluginError(
            f"{module_name} defines {len(own)} plug-in classes; exactly one is needed"
        )
    return cast(type, own[0])


@dataclass(frozen=True)
class Option:
    """One constructor argument of a plug-in."""

    name: str
    annotation: Any
    default: Any
    required: bool


def options(target: Callable[..., Any]) -> dict[str, Option]:
    """The named arguments that a plug-in's constructor (or a factory function) takes."""
    hints = _hints(target)
    result = {}
    for name, parameter in inspect.signature(target).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        required = parameter.default is parameter.empty
        default = None if required else parameter.default
        result[name] = Option(name, hints.get(name, Any), default, required)
    return result


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    """Types of the arguments, each read in the module where it is written.

    A dataclass makes its constructor in its own module, from fields of its parents in theirs.
    """
    parents = inspect.getmro(target) if inspect.isclass(target) else ()
    function = inspect.unwrap(target.__init__ if inspect.isclass(target) else target)
    own = getattr(function, "__globals__", {})
    found: dict[str, Any] = {}
    for name, written in inspect.get_annotations(function).items():
        homes = [p for p in parents if inspect.get_annotations(p).get(name) == written]
        space = vars(sys.modules[homes[0].__module__]) if homes else own
        try:
            one = SimpleNamespace(__annotations__={name: written})
            found |= get_type_hints(one, space, include_extras=True)
        except NameError:  # imported for type checkers only
            continue
    return found


def check_options(
    target: Callable[..., Any],
    given: Mapping[str, Any],
    label: str,
    also_given: Container[str] = (),
) -> dict[str, Any]:
    """Check names, types and ranges of options against a constructor's signature.

    Args:
        target: Class or function to be called with the options.
        given: Option values, as read from YAML.
        label: How to call the plug-in in messages, such as ``strategy 'fedavgm'``.
        also_given: Names of options that someone else gives; not the user's to set.

    Returns:
        The options, converted to the annotated types.

    Raises:
        PluginError: An option is unknown, missing, of the wrong type or out of range; ``key``
            names it.
    """
    try:
        known = options(target)
    except (TypeError, ValueError):
        what = f"{label} cannot be called with options"
        raise PluginError(what, allowed="A class or a function written in Python") from None
    open_ = [name for name in known if name not in also_given]
    allowed = f"Options: {', '.join(open_) or 'none'}"
    for name in given:
        if name not in known:
            hint = did_you_mean(name, open_)
            what = f"unknown option '{name}' of {label}"
            raise PluginError(what, key=(name,), hint=hint, allowed=allowed)
    for name in open_:
        if known[name].required and name not in given:
            raise PluginError(f"{label} needs the option '{name}'", allowed=allowed)
    return {name: _convert(known[name], value, label) for name, value in given.items()}


def _convert(option: Option, value: Any, label: str) -> Any:
    try:
        return _adapter(option.annotation).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        wanted = wording.requirement(e["msg"] for e in error.errors())
        is_plugin = first["type"] == "is_instance_of"
        raise PluginError(
            f"option '{option.name}' of {label} {wanted}, not {wording.shown(first['input'])}",
            key=(option.name, *first["loc"]),
            hint=f"Write {option.name}: {{name: ...}}" if is_plugin else "",
        ) from None


def _adapter(annotation: Any) -> TypeAdapter[Any]:
    try:
        config = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
        return TypeAdapter(annotation, config=config)
    except PydanticUserError:  # a pydantic model or dataclass brings its own configuration
        return TypeAdapter(annotation)


def build(kind: str, section: Mapping[str, Any], **extra: Any) -> Any:
    """Build the plug-in that a scenario section describes.

    Args:
        kind: One of ``KINDS``.
        section: Mapping with ``name`` and the constructor's arguments. An argument that is itself
            a mapping with ``name`` (a strategy inside a wrapper) is built first.
        **extra: Arguments that the engine supplies where the innermost constructor takes them.

    Returns:
        The instance; an object that is no class (a Flower ``ClientApp``) is returned as it is.
    """
    given = dict(section)
    name = given.pop("name")
    target = find(kind, name)
    if not is_factory(target):
        return target
    nested = {k: v for k, v in given.items() if isinstance(v, Mapping) and "name" in v}
    inner = {k: build(kind, v, **extra) for k, v in nested.items()}
    checked = check_options(target, {**given, **inner}, f"{kind_label(kind)} '{name}'")
    known = options(target)
    supplied = {} if nested else {k: v for k, v in extra.items() if k in known and k not in given}
    try:
        result = target(**checked, **supplied)
    except FedsimError:
        raise
    except Exception as error:
        raise _refusal(kind, name, given, error) from error
    check_kind(kind, name, result)
    return result


def is_factory(target: Any) -> bool:
    """Whether a plug-in is called with options; otherwise it is an instance, used as it is."""
    return inspect.isclass(target) or inspect.isfunction(target)


def _refusal(kind: str, name: str, given: Mapping[str, Any], error: Exception) -> PluginError:
    """What a constructor raised, with the option that its message is about."""
    label = kind_label(kind)
    blamed = [o for o in given if re.search(rf"\b{o.replace('_', '[_ ]')}\b", str(error))]
    return PluginError(
        f"{label} '{name}' refuses its options: {type(error).__name__}: {error}",
        key=(label, *blamed[:1]),
        hint=f"See `fedsim show {label}:{name}`",
    )


def kind_label(kind: str) -> str:
    """Singular word for a kind: ``strategies`` is ``strategy``."""
    return {"strategies": "strategy"}.get(kind, kind.removesuffix("s"))
