"""pydantic's complaints in the project's words: which key, what it must be, what was written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from fedsim.errors import Key, ScenarioError, did_you_mean
from fedsim.layers import existing
from fedsim.sections import Plugin


def requirement(messages: Iterable[str]) -> str:
    """What pydantic wants of a value, to follow the value's name; more than one for a union.

    >>> requirement(["Input should be a valid integer, unable to parse", "Input should be 'auto'"])
    "must be a valid integer or 'auto'"
    """
    short = dict.fromkeys(re.sub(", (unable|got) .*", "", message) for message in messages)
    if not all(message.startswith("Input should be ") for message in short):
        return f"is refused ({'; '.join(short)})"
    words = " or ".join(message.removeprefix("Input should be ") for message in short)
    words = re.sub(r"valid dictionary( or instance of \w+)?", "mapping of keys to values", words)
    return f"must be {words.replace('valid tuple', 'list')}"


def shown(value: Any) -> str:
    """A refused value as a person wrote it; nothing after the colon is ``None`` in Python."""
    return "empty" if value is None else repr(value)


def scenario_error(
    error: ValidationError, values: dict[str, Any], model: type[BaseModel]
) -> ScenarioError:
    """The worst fault of a scenario: an unknown key, since it explains missing ones, or a deep one.

    Of a union, the members that fit best have the longest paths; they are told together.

    Args:
        error: What pydantic found.
        values: What was validated.
        model: By what.
    """
    faults = [(existing(values, fault["loc"]), fault) for fault in error.errors()]
    faults.sort(key=lambda f: (f[1]["type"] != "extra_forbidden", -len(f[0])))
    key, first = faults[0]
    if first["type"] == "extra_forbidden":
        return _unknown_key(key, _section_at(model, key[:-1]))
    section = _section_at(model, key)
    if first["type"] == "missing":
        return _missing_key(key, str(first["loc"][-1]), section)
    wanted = requirement(fault["msg"] for k, fault in faults if k == key)
    return ScenarioError(
        f"'{_dotted(key)}' {wanted}, not {shown(first['input'])}",
        key=key,
        allowed=_form(section) if first["type"] == "model_type" else "",
    )


def _unknown_key(key: Key, section: type[BaseModel]) -> ScenarioError:
    return ScenarioError(
        f"unknown key '{key[-1]}'{_inside(key[:-1])}",
        key=key,
        hint=did_you_mean(str(key[-1]), section.model_fields),
        allowed=_keys(section),
    )


def _missing_key(parent: Key, name: str, section: type[BaseModel]) -> ScenarioError:
    field = section.model_fields.get(name)
    meaning = field.description if field else ""
    return ScenarioError(
        f"the key '{name}' is missing{_inside(parent)}",
        key=parent,
        allowed=f"{name}: {meaning}" if meaning else "",
    )


def _section_at(model: type[BaseModel], key: Key) -> type[BaseModel]:
    """The innermost model on a key path."""
    for part in key:
        field = model.model_fields.get(str(part))
        annotation = field.annotation if field else None
        model = next(_models(annotation), model)
    return model


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models in an annotation, such as those in a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def _form(section: type[BaseModel]) -> str:
    if issubclass(section, Plugin):
        return "A name, or a mapping with 'name' and options"
    return _keys(section)


def _keys(section: type[BaseModel]) -> str:
    return f"Keys: {', '.join(section.model_fields)}"


def _inside(key: Key) -> str:
    return f" in '{_dotted(key)}'" if key else ""


def _dotted(key: Key) -> str:
    return ".".join(map(str, key))
