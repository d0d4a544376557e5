"""The Hugging Face split language (``train[:2000]``, ``train[80%:]+extra``) over loaded splits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from fedsim.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from datasets import Dataset

Ranges = list[tuple[str, int, int]]
"""Row ranges ``(split, first, end)``."""


def names(spec: str) -> set[str]:
    """Names in a split expression.

    >>> sorted(names("train[:5]+extra"))
    ['extra', 'train']
    """
    return {part.split("[")[0].strip() for part in spec.split("+")}


def check_names(known: Iterable[str], spec: str, field: str) -> set[str]:
    """Names in a split expression, all of which must be known.

    Args:
        known: Names of the splits that there are.
        spec: The expression.
        field: The key of the data section that holds it, for the message.

    Raises:
        DataError: A name is not known.
    """
    available = list(known)
    for name in sorted(names(spec).difference(available)):
        raise DataError(
            f"the data has no split '{name}'",
            key=("data", field),
            hint=did_you_mean(name, available),
            allowed=f"Splits: {', '.join(available)}",
        )
    return names(spec)


def ranges(whole: Mapping[str, Dataset], spec: str, field: str) -> Ranges:
    """The rows that a split expression names; at least one.

    Raises:
        DataError: The expression is malformed, names an unknown split, or has no rows.
    """
    from datasets import ReadInstruction

    check_names(whole, spec, field)
    sizes = {name: len(split) for name, split in whole.items()}
    try:
        parts = ReadInstruction.from_spec(spec).to_absolute(sizes)
    except (ValueError, AssertionError) as error:
        raise DataError(
            f"the split '{spec}' cannot be taken: {error}",
            key=("data", field),
            hint="Splits are written as in datasets, for example train[:2000] or train[:10%]",
        ) from None
    found = [
        (part.splitname, part.from_ or 0, sizes[part.splitname] if part.to is None else part.to)
        for part in parts
    ]
    if not any(end > first for _, first, end in found):
        raise DataError(f"the split '{spec}' has no rows", key=("data", field))
    return found


def check_disjoint(train: Ranges, test: Ranges) -> None:
    """Refuse a test set that shares rows with the training set."""
    for name, first, end in test:
        if any(n == name and max(first, f) < min(end, e) for n, f, e in train):
            raise DataError(
                "train_split and test_split share rows",
                key=("data", "test_split"),
                hint="For example: train_split: train[:80%], test_split: train[80%:]",
            )


def take(whole: Mapping[str, Dataset], chosen: Ranges) -> Dataset:
    """The rows of some ranges as one Dataset."""
    from datasets import concatenate_datasets

    parts = [
        whole[name]
        if (first, end) == (0, len(whole[name]))
        else whole[name].select(range(first, end))
        for name, first, end in chosen
    ]
    return parts[0] if len(parts) == 1 else concatenate_datasets(parts)
