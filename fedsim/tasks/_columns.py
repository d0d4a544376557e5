"""Columns that a task's options name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsim.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from datasets import Dataset


def check_column(rows: Dataset, name: str, option: str) -> None:
    """Refuse a column that is not there; ``option`` is the task's option that names it.

    Raises:
        DataError: With the columns that exist.
    """
    if name not in rows.info.features:  # ``rows.features`` copies them deeply
        raise DataError(
            f"the data has no column '{name}'",
            key=("task", option),
            hint=did_you_mean(name, rows.column_names),
            allowed=f"Columns: {', '.join(rows.column_names)}",
        )
