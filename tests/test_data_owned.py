"""Picking an owner's rows gives what ``Dataset.select`` gives."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import Array2D, Dataset, Features, Image, List, Value, concatenate_datasets

from fedsim.data.owned import Table

ROWS = 12


def table() -> Dataset:
    return Dataset.from_dict(
        {
            "pixels": np.arange(ROWS * 6, dtype=np.uint8).reshape(ROWS, 2, 3),
            "vector": np.arange(ROWS * 2, dtype=np.float32).reshape(ROWS, 2),
            "number": list(range(ROWS)),
            "text": [f"row {i}" for i in range(ROWS)],
            "ragged": [[0] * (i % 3) for i in range(ROWS)],
            "missing": [None if i == 4 else i for i in range(ROWS)],
        },
        features=Features(
            {
                "pixels": Array2D((2, 3), "uint8"),
                "vector": List(Value("float32")),
                "number": Value("int64"),
                "text": Value("string"),
                "ragged": List(Value("int64")),
                "missing": Value("int64"),
            }
        ),
    )


SOURCES = {
    "whole": table(),
    "selected": table().select([3, 1, 4, 1, 5, 9, 2, 6, 5, 8]),
    "joined": concatenate_datasets([table(), table()]),
}


@pytest.mark.parametrize("source", SOURCES)
def test_picked_rows_are_selected_rows(source):
    rows = SOURCES[source]
    numbers = np.array([7, 0, 3])
    picked, selected = Table(rows).pick(numbers), rows.select(numbers)
    assert picked[:] == selected[:]
    assert picked.features == selected.features
    assert picked.select([2, 0])[:] == selected.select([2, 0])[:]
    for name in ("pixels", "vector", "number"):
        assert np.array_equal(picked.array(name), selected.with_format("numpy")[name][:])


def test_columns_without_one_shape_have_no_array():
    picked = Table(table()).pick(np.array([0, 1]))
    assert [picked.array(name) for name in ("text", "ragged", "missing")] == [None] * 3


def test_images_have_no_array():
    pictures = [np.zeros((2, 2), np.uint8)] * 2
    images = Dataset.from_dict({"image": pictures}, features=Features({"image": Image()}))
    assert Table(images).pick(np.array([1])).array("image") is None


def test_owners_have_fingerprints_of_their_own():
    whole = Table(table())
    first, again, other = (whole.pick(np.array(x)) for x in ([0, 1], [0, 1], [1, 0]))
    assert first._fingerprint == again._fingerprint != other._fingerprint
    assert other.map(lambda row: {"twice": 2 * row["number"]})["twice"][:] == [2, 0]


def test_a_picked_array_is_the_owners_own():
    whole = Table(table())
    array = whole.pick(np.array([0, 1])).array("vector")
    array[:] = -1
    assert whole.pick(np.array([0])).array("vector").tolist() == [[0, 1]]
