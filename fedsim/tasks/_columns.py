"""Columns that a task's options name, and values that it can take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

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


def column(rows: Dataset, name: str, option: str) -> Any:
    """The values of a column.

    Raises:
        DataError: There is no such column; ``option`` is the task's option that named it.
    """
    check_column(rows, name, option)
    from fedsim.data.owned import OwnedRows  # loads datasets, which takes a second

    fast = rows.array(name) if isinstance(rows, OwnedRows) else None
    return rows.with_format("numpy")[name][:] if fast is None else fast


def numbers(values: Any, name: str, option: str) -> NDArray[np.float32]:
    """A column as float32.

    Raises:
        DataError: A value is no finite number.
    """
    try:
        array = np.asarray(values, dtype=np.float32)
        odd = np.argwhere(~np.isfinite(array))[:1].ravel()
    except (TypeError, ValueError):
        raise _not_a_number(name, option, f"holds '{values[0]}'") from None
    if odd.size:
        raise _not_a_number(name, option, f"holds {array[tuple(odd)]} in row {odd[0] + 1}")
    return array


def _not_a_number(name: str, option: str, what: str) -> DataError:
    return DataError(
        f"the column '{name}' {what}",
        key=("task", option),
        allowed="Finite numbers, or vectors of them, of one length",
        hint="Leave out such rows or fill them in; write words as numbers",
    )


def classes(values: Any, name: str) -> NDArray[np.int64]:
    """A column of class labels as int64.

    Raises:
        DataError: A value is no whole number from 0.
    """
    array = np.asarray(values)
    if array.dtype.kind in "biu" and (array.size == 0 or array.min() >= 0):
        return array.astype(np.int64, copy=False)
    row = next((i for i, value in enumerate(array.ravel()) if not _is_class(value)), None)
    if row is not None:
        raise DataError(
            f"the column '{name}' holds {array.ravel()[row]} in row {row + 1}",
            key=("task", "label_column"),
            allowed="Labels are whole numbers from 0, one for every row",
            hint="Number the classes 0, 1, 2 and so on",
        )
    return array.astype(np.int64)


def _is_class(value: Any) -> bool:
    is_number = isinstance(value, int | float | np.number)
    return is_number and bool(0 <= value < 2**31 and value == int(value))
