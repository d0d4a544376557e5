"""Tables that fit a terminal: headings broken, columns left out in a fixed order, names shortened.

Whatever was left out is returned, to be said below the table.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len

Lines = list[list[str]]
LEAST_NAME = 16
"""Characters of the first column that are always kept."""


def fit(
    headings: Sequence[str], lines: Sequence[Sequence[str]], width: int, spare: Sequence[str]
) -> tuple[list[str], Lines, list[str]]:
    """The table in a width: its headings, its lines, and the headings of what was left out.

    Args:
        headings: Of the columns; the first one names the line and is shortened last.
        lines: Texts of the cells.
        width: Of the terminal, in characters.
        spare: How headings begin that may go, the first one first.

    >>> fit(["run", "best score", "memory"], [["a", "0.5", "1.25 MB"]], 18, ["memory"])
    (['run', 'best\\nscore'], [['a', '0.5']], ['memory'])
    """
    kept, rows = list(headings), [list(line) for line in lines]
    left_out: list[str] = []
    if needed(kept, rows) > width:
        kept = [heading.replace(" ", "\n") for heading in kept]
    for start in spare:
        if needed(kept, rows) <= width:
            break
        for i in [i for i, h in enumerate(kept) if h.replace("\n", " ").startswith(start)]:
            left_out.append(kept.pop(i).replace("\n", " "))
            for row in rows:
                row.pop(i)
    excess = needed(kept, rows) - width
    if excess > 0:
        longest = max((cell_len(row[0]) for row in rows), default=0)
        most = max(LEAST_NAME, longest - excess)
        rows = [[shortened(row[0], most), *row[1:]] for row in rows]
    return kept, rows, left_out


def fits(headings: Sequence[str], lines: Sequence[Sequence[str]], width: int) -> bool:
    """Whether a table fits as it is, but for breaks in its headings."""
    return needed([heading.replace(" ", "\n") for heading in headings], lines) <= width


def needed(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> int:
    """Characters that a table takes: three between columns, two before the first and after."""
    columns = zip(*[[heading.split("\n") for heading in headings], *_cells(lines)], strict=True)
    return (
        sum(max(cell_len(part) for cell in column for part in cell) + 3 for column in columns) + 1
    )


def shortened(text: str, most: int) -> str:
    """At most so many characters, without some in the middle: names differ at both ends.

    >>> shortened("abcdefghij", 6)
    'abc…ij'
    """
    if len(text) <= most:
        return text
    return f"{text[: most // 2]}…{text[len(text) - (most - most // 2 - 1) :]}"


def _cells(lines: Sequence[Sequence[str]]) -> list[list[list[str]]]:
    return [[[text] for text in line] for line in lines]
