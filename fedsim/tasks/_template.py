"""Templates that turn a row into text: ``"Question: {question} Answer:"``."""

from __future__ import annotations

import string
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedsim.errors import ScenarioError

from . import _text
from ._columns import check_column

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Template:
    """Literal text, each piece followed by the column to insert after it.

    Attributes:
        option: The task's option that holds the template, for messages.
        pieces: Literal text and column (or None), alternating.
    """

    option: str
    pieces: tuple[tuple[str, str | None], ...]

    @property
    def columns(self) -> list[str]:
        """Names of the columns that are inserted."""
        return [column for _, column in self.pieces if column is not None]

    def check(self, rows: Dataset) -> None:
        """Refuse rows that lack a column.

        Raises:
            DataError: With the columns that exist.
        """
        for column in self.columns:
            check_column(rows, column, self.option)

    def render(self, rows: Dataset) -> Iterator[str]:
        """One text per row; an empty cell is an empty text."""
        self.check(rows)
        values = {column: _text.texts(rows, column) for column in self.columns}
        for row in range(len(rows)):
            yield "".join(
                literal + (values[column][row] if column is not None else "")
                for literal, column in self.pieces
            )


def parse(text: str, option: str) -> Template:
    """Read a template; ``{name}`` is a column, ``{{`` and ``}}`` are braces.

    >>> parse("Q: {question} A:", "prompt").columns
    ['question']

    Raises:
        ScenarioError: Braces do not match, or hold more than a name.
    """
    hint = "Columns are written {column}, braces {{ and }}"
    try:
        pieces = list(string.Formatter().parse(text))
    except ValueError as error:
        raise ScenarioError(
            f"the template is malformed: {error}", key=("task", option), hint=hint
        ) from None
    for _, column, form, conversion in pieces:
        if column is not None and (not column or form or conversion):
            raise ScenarioError(
                f"the template {text!r} has braces that hold no column's name",
                key=("task", option),
                hint=hint,
            )
    return Template(option, tuple((literal, column) for literal, column, _, _ in pieces))
