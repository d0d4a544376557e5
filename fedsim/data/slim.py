"""The small in-memory table that partitioners work on; imported only when one runs."""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

ROW = "__row__"
"""Column that holds a row's position in the table."""


class SlimDataset(Dataset):  # type: ignore[misc]
    """A Dataset whose columns and selections are copied arrays.

    A plain Dataset builds columns row by row and a fingerprint for each selection; with 1000
    clients that takes seconds. Only methods that horizontal partitioners of flwr-datasets call on
    the result of these two are meant to be used.
    """

    def __getitem__(self, key: Any) -> Any:
        return (
            self.data.column(key).to_numpy() if isinstance(key, str) else super().__getitem__(key)
        )

    def select(self, indices: Any, *args: Any, **kwargs: Any) -> SlimDataset:
        """Rows by position, as a new table."""
        del args, kwargs  # caching and batching of Dataset.select
        picked = self.data.table.take(np.asarray(indices, dtype=np.int64))
        return SlimDataset(picked, fingerprint="slim")


def build(table: Any, exact: bool) -> Dataset:
    """A table with its row numbers as a Dataset.

    Args:
        table: ``pyarrow.Table`` with the columns that the partitioner needs.
        exact: A plain Dataset for partitioners that may call anything on it.
    """
    import pyarrow as pa

    numbered = table.append_column(ROW, pa.array(np.arange(table.num_rows)))
    return Dataset(numbered) if exact else SlimDataset(numbered, fingerprint="slim")


def row_numbers(part: Dataset) -> NDArray[np.int64]:
    """Which rows of the table a partition has."""
    if isinstance(part, SlimDataset):
        rows = part.data.column(ROW)
    else:
        rows = part.select_columns([ROW]).with_format("arrow")[:][ROW]
    return np.asarray(rows.to_numpy(), dtype=np.int64)
