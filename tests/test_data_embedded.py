"""Arrays as data sets: their values, and a fingerprint that follows them."""

import numpy as np

from fedsim.data import embedded

VALUES, LABELS, NAMES = np.arange(18, dtype=np.uint8).reshape(2, 3, 3), np.array([0, 1]), ["a", "b"]


def fingerprint(values=VALUES, labels=LABELS, names=NAMES, column="image"):
    return embedded._dataset(column, values, labels, names)._fingerprint


def test_the_values_come_back():
    rows = embedded._dataset("image", VALUES.transpose(0, 2, 1), LABELS, NAMES)
    batch = rows.with_format("numpy")[:]
    np.testing.assert_array_equal(batch["image"], VALUES.transpose(0, 2, 1))
    np.testing.assert_array_equal(batch["label"], LABELS)
    assert rows.features["label"].names == NAMES


def test_equal_arrays_have_equal_fingerprints_and_others_others():
    assert fingerprint() == fingerprint(VALUES.copy(), LABELS.astype(np.uint8))
    others = [
        fingerprint(VALUES + 1),
        fingerprint(VALUES.reshape(2, 9, 1)),
        fingerprint(VALUES.transpose(0, 2, 1)),
        fingerprint(labels=LABELS[::-1]),
        fingerprint(names=["a", "c"]),
        fingerprint(column="picture"),
    ]
    assert len({fingerprint(), *others}) == 1 + len(others)
