"""What the commands ``list`` and ``show`` print; reads files, imports no plug-in to list it."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import inspect
import json as json_module
from collections.abc import Callable
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from fedsim import layers, partners, registry, scenario
from fedsim.errors import PluginError, did_you_mean
from fedsim.registry import Entry

Entries = dict[str, Entry]
DECIDED = {*partners.ENGINE_SUPPLIED, "num_partitions"}
"""Arguments that are no options, because the scenario's own keys decide them."""
SIGNS = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))
NOT_USABLE = ("Strategy", "Result", "FedXgbBagging", "FedXgbCyclic")
"""Exported beside Flower's strategies: the contract, its result, and what aggregates trees."""


def scenarios() -> Entries:
    """Shipped scenarios with the first line of their comment."""
    found = {}
    for path in layers.shipped_scenarios():
        first = path.read_text(encoding="utf-8").split("\n", 1)[0]
        found[path.stem] = Entry(path.stem, first.lstrip("# "))
    return found


def flower_strategies() -> Entries:
    """The usable ones of ``flwr.serverapp.strategy``, read from the installed source."""
    folder = _package("flwr") / "serverapp" / "strategy"
    public = set(_exported(folder / "__init__.py")).difference(NOT_USABLE)
    found = {}
    for path in sorted(folder.glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name in public:
                name = f"flwr.serverapp.strategy:{node.name}"
                found[name] = Entry(name, (ast.get_docstring(node) or "").split("\n", 1)[0])
    return found


def _exported(path: Path) -> list[str]:
    """The names in a module's ``__all__``."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def partitioners() -> Entries:
    """The partitioners of flwr-datasets, and the lazy ones."""
    from fedsim.data import names

    return names.available()


def _device_files(kind: str) -> Entries:
    """Shipped profiles or networks with the first line of their comment."""
    from fedsim.devices import profiles

    return {
        name: Entry(name, path.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# "))
        for name, path in profiles.names(kind).items()
    }


def peft_types() -> Entries:
    """The adapter types of peft, with what averaging their parameters means."""
    from fedsim.models import catalogue

    return {
        name: Entry(name, f"averaging parameters is {catalogue.describe({'peft_type': name}).word}")
        for name in catalogue.all_types()
    }


KINDS: dict[str, Callable[[], Entries]] = {
    "scenarios": scenarios,
    "strategies": lambda: {**registry.available("strategies"), **flower_strategies()},
    "clients": lambda: registry.available("clients"),
    "codecs": lambda: registry.available("codecs"),
    "feedback": lambda: registry.available("feedback"),
    "tasks": lambda: registry.available("tasks"),
    "selectors": lambda: registry.available("selectors"),
    "trackers": lambda: registry.available("trackers"),
    "partitioners": partitioners,
    "peft": peft_types,
    "profiles": lambda: _device_files("profiles"),
    "networks": lambda: _device_files("networks"),
}


def print_list(kind: str | None, json: bool) -> None:
    """Print one kind, or all of them."""
    if kind is not None and kind not in KINDS:
        raise PluginError(
            f"there is no kind '{kind}'",
            hint=did_you_mean(kind, KINDS),
            allowed=f"Kinds: {', '.join(KINDS)}",
        )
    chosen = {k: KINDS[k]() for k in ([kind] if kind else KINDS)}
    if json:
        plain = {k: {e.name: e.summary for e in entries.values()} for k, entries in chosen.items()}
        print(json_module.dumps(plain, indent=1))
        return
    for title, entries in chosen.items():
        print(f"{title}:")
        width = max(map(len, entries), default=0)
        for entry in entries.values():
            print(f"  {entry.name:<{width}}  {entry.summary}")


def show(name: str) -> None:
    """Print the cards of ``name`` or ``kind:name``; ``schema`` is the JSON Schema of scenarios.

    Raises:
        PluginError: Nothing of that name is known.
    """
    if name == "schema":
        print(json_module.dumps(scenario.json_schema(), indent=1))
        return
    kind, _, rest = name.partition(":")
    aliases = {"strategy": "strategies", "partitioner": "partitioners", "scenario": "scenarios"}
    kind = aliases.get(kind, kind if kind in KINDS else f"{kind}s")
    if rest and kind in KINDS:
        _show(kind, rest)
        return
    kinds = _kinds_of(name)
    for number, kind in enumerate(kinds):
        if len(kinds) > 1:  # such as a strategy and its client
            print(f"\n--- {kind}:{name}\n" if number else f"--- {kind}:{name}\n")
        _show(kind, name)


def _show(kind: str, rest: str) -> None:
    if kind == "scenarios":
        print(layers.find_scenario(rest).read_text(encoding="utf-8"), end="")
    elif kind in ("profiles", "networks"):
        from fedsim.devices import profiles

        print(profiles.names(kind)[rest].read_text(encoding="utf-8"), end="")
    elif kind == "peft":
        from fedsim.models import catalogue

        print(catalogue.card(rest))
    elif kind == "partitioners":
        from fedsim.data import partition

        _print_card(partition.find(rest))
    else:
        _print_card(registry.find(kind, rest))


def _kinds_of(name: str) -> list[str]:
    kinds = [kind for kind, entries in KINDS.items() if name in entries()]
    if kinds:
        return kinds
    if ":" in name:
        return ["strategies"]
    known = [entry for entries in KINDS.values() for entry in entries()]
    raise PluginError(
        f"nothing is called '{name}'",
        hint=did_you_mean(name, known),
        allowed="See `fedsim list`",
    )


def _print_card(target: Any) -> None:
    module = inspect.getmodule(target)
    own = module is not None and module.__name__.startswith("fedsim.")
    print(inspect.cleandoc((module.__doc__ if own and module else target.__doc__) or ""))
    if own:
        print("\n" + inspect.cleandoc(target.__doc__ or ""))
    if registry.is_factory(target):
        print("\nOptions:")
        print("\n".join(_option_lines(target)) or "  none")
    for fact in ("sends", "accepts", "additive", "needs_state"):
        value = getattr(target, fact, None)
        if value is not None and not isinstance(value, property):  # that depends on options
            print(f"{fact}: {', '.join(value) if isinstance(value, tuple) else value}")


def _option_lines(target: Any) -> list[str]:
    fields = dataclasses.fields(target) if dataclasses.is_dataclass(target) else ()
    made = {f.name: f.default_factory() for f in fields if callable(f.default_factory)}
    lines = []
    for option in registry.options(target).values():
        default = f"default {made.get(option.name, option.default)!r}"
        if option.name not in DECIDED:
            what = "required" if option.required else default
            lines.append(f"  {option.name}: {_type_name(option.annotation)}  ({what})")
    return lines


def _type_name(annotation: Any) -> str:
    """A type in few words.

    >>> from pydantic import PositiveFloat
    >>> _type_name(PositiveFloat | None)
    'float > 0 | none'
    """
    members = get_args(annotation)
    if get_origin(annotation) is Annotated:
        rules = [rule for m in members[1:] for rule in getattr(m, "metadata", [m])]
        bounds = [f"{sign} {getattr(r, k)}" for r in rules for k, sign in SIGNS if hasattr(r, k)]
        return " ".join([_type_name(members[0]), *bounds])
    if get_origin(annotation) in (Union, UnionType):
        return " | ".join(map(_type_name, members))
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, members))
    if get_origin(annotation) is Callable:
        return "a function"
    if annotation is NoneType:
        return "none"
    return inspect.formatannotation(annotation).replace("typing.", "")


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])
