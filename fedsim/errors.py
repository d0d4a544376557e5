"""The project's exceptions, and how a person reads them.

    FedsimError                 exit code
    |-- ScenarioError           2   the user's file, option or override
    |   |-- DataError           2   a data set or a split that cannot be
    |   |-- ModelError          2   a model, tokenizer or adapter that cannot be built
    |   `-- PluginError         2   an unknown plug-in, a wrong option, unfitting partners
    |-- OutputError             2   a folder or file that cannot be written or read
    |-- PayloadError            3   an encoded update, truncated, altered or of another layout
    |-- ClientError             3   one client's work failed; becomes an error reply
    `-- RunError                3   the run could not finish

Every message is one paragraph: where, what, what is allowed, what to try.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, Self

Key = tuple[str | int, ...]
"""Path of a value inside a scenario, for example ``("data", "partitioner", "alpha")``."""


class FedsimError(Exception):
    """Base of all errors that fedsim raises on purpose.

    Args:
        what: The fault in one sentence.
        key: Path of the offending value in the scenario; the loader turns it into file:line.
        where: File, line or object at fault, when known.
        allowed: What would have been accepted.
        hint: What to try.
    """

    exit_code = 3

    def __init__(
        self,
        what: str,
        *,
        key: Iterable[str | int] = (),
        where: str = "",
        allowed: str = "",
        hint: str = "",
    ) -> None:
        super().__init__(what)
        self.what, self.key, self.where = what, tuple(key), where
        self.allowed, self.hint = allowed, hint

    def __str__(self) -> str:
        place = self.where or ".".join(map(str, self.key))
        advice = [self.allowed, self.hint]
        if self.hint.startswith("Did you mean"):
            advice.reverse()  # before a list that may be long
        parts = [f"{place}: {self.what}" if place else self.what, *advice]
        text = " ".join(p if p.endswith((".", "?", "!")) else p + "." for p in parts if p)
        return " ".join(text.split())

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.what, self.__dict__.copy())

    def at(self, where: str) -> Self:
        """Fill in the place, unless a more exact one is known; returns self for ``raise``."""
        self.where = self.where or where
        return self


def _rebuild(cls: type[FedsimError], what: str, state: dict[str, Any]) -> FedsimError:
    error = cls(what)
    error.__dict__.update(state)
    return error


class ScenarioError(FedsimError):
    """The scenario, an option or an override is wrong."""

    exit_code = 2


class DataError(ScenarioError):
    """A data set or a split cannot be made."""


class ModelError(ScenarioError):
    """A model, tokenizer or adapter cannot be built."""


class PluginError(ScenarioError):
    """A plug-in is unknown, has wrong options, or does not fit its partners."""


class OutputError(FedsimError):
    """A folder or file cannot be written or read."""

    exit_code = 2


class PayloadError(FedsimError):
    """An encoded update is truncated, altered, or made for another layout."""


class ClientError(FedsimError):
    """The work of one client failed; ``where`` names client, round and stage."""


class RunError(FedsimError):
    """The run could not finish."""


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Suggest the nearest option, whatever its case, or return the empty string.

    >>> did_you_mean("alfa", ["alpha", "scheme"])
    "Did you mean 'alpha'?"
    """
    known = {option.lower(): option for option in reversed(list(options))}
    near = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.6)
    return f"Did you mean '{known[near[0]]}'?" if near else ""
