"""The rows of one owner, picked without the price of ``Dataset.select``.

``select`` copies features and computes a fingerprint, and formatted columns are built row by row:
5 ms for a client of 50 images, each time a worker meets a client. Here a client is an index into
the whole table, and a numeric column is one array over all rows.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from datasets import Dataset
from datasets.table import InMemoryTable
from numpy.typing import NDArray

MAX_COPIED_BYTES = 64 * 2**20
"""A column in several pieces is joined up to this size; a column in one piece is never copied."""


class Table:
    """A Dataset from which owners' rows are picked."""

    def __init__(self, rows: Dataset) -> None:
        self.rows = rows
        self._numbers = None if rows._indices is None else _flat(rows._indices.column(0))
        self._arrays: dict[str, NDArray[Any] | None] = {}

    def pick(self, numbers: NDArray[np.int64]) -> OwnedRows:
        """These rows, as ``Dataset.select`` gives them."""
        stored = numbers if self._numbers is None else self._numbers[numbers]
        picked: OwnedRows = copy.copy(self.rows)
        picked.__class__ = OwnedRows
        picked.table, picked.stored = self, stored
        picked._indices = InMemoryTable.from_pydict({"indices": pa.array(stored, pa.uint64())})
        digest = xxhash.xxh64_hexdigest(stored.tobytes())
        picked._fingerprint = f"{self.rows._fingerprint}-{digest}"
        return picked

    def array(self, name: str) -> NDArray[Any] | None:
        """A whole column, in the order it is stored; None unless it is numbers of one shape."""
        if name not in self._arrays:
            self._arrays[name] = _numbers(self.rows.data.column(name))
        return self._arrays[name]


class OwnedRows(Dataset):  # type: ignore[misc]
    """Rows of a table; every method of ``Dataset`` works."""

    table: Table
    stored: NDArray[np.int64]

    def array(self, name: str) -> NDArray[Any] | None:
        """A numeric column ``(rows, ...)``; None where the column has other values."""
        whole = self.table.array(name)
        return None if whole is None else whole[self.stored]


def _numbers(column: pa.ChunkedArray) -> NDArray[Any] | None:
    """A column as an array; None for text, missing values, and lists of unequal lengths."""
    if column.num_chunks > 1 and column.nbytes > MAX_COPIED_BYTES:
        return None
    values: Any = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    shape = [len(values)]
    while isinstance(values, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        lengths = np.unique(values.value_lengths().to_numpy(zero_copy_only=False))
        if values.null_count or len(lengths) != 1:
            return None
        shape.append(int(lengths[0]))
        values = values.flatten()
    numeric = pa.types.is_integer(values.type) or pa.types.is_floating(values.type)
    return _flat(values).reshape(shape) if numeric and not values.null_count else None


def _flat(values: Any) -> NDArray[Any]:
    array: NDArray[Any] = values.to_numpy()
    return array
