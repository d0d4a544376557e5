"""Data sets that are arrays: IDX files (the MNIST format) and scikit-learn's embedded sets."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from fedsim.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from datasets import Dataset

IDX_NAMES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
"""Standard file names in a ``data_dir``; ``.gz`` may follow."""
SKLEARN_SETS = ("breast_cancer", "digits", "iris", "wine")


def idx_files(data_dir: str) -> dict[str, list[str]]:
    """The files of an IDX folder; a test pair of which neither file exists is left out."""
    folder = Path(data_dir)
    files = {}
    for split, names in IDX_NAMES.items():
        found = [_plain_or_gz(folder / name) for name in names]
        if split == "train" or any(path.is_file() for path in found):
            files[split] = [str(path) for path in found]
    return files


def _plain_or_gz(path: Path) -> Path:
    packed = path.with_name(f"{path.name}.gz")
    return packed if packed.is_file() and not path.is_file() else path


def read_idx(files: Mapping[str, list[str]]) -> dict[str, Dataset]:
    """Read ``[images, labels]`` pairs into columns ``image`` (uint8) and ``label``."""
    arrays = {}
    for split, (image_file, label_file) in files.items():
        images, labels = _read_idx_file(image_file), _read_idx_file(label_file)
        if images.ndim not in (3, 4) or labels.ndim != 1:
            raise DataError(
                f"has {images.ndim} dimensions, and {label_file} has {labels.ndim}",
                where=image_file,
                allowed="Images have 3 (rows, height, width) or 4 dimensions, labels have 1",
                hint="Are the two files in the order [images, labels]?",
            )
        if len(images) != len(labels):
            raise DataError(
                f"has {len(images)} images, but {label_file} has {len(labels)} labels",
                where=image_file,
            )
        arrays[split] = images, labels
    classes = 1 + max(
        (int(labels.max()) for _, labels in arrays.values() if len(labels)), default=0
    )
    names = [str(i) for i in range(classes)]
    return {split: _dataset("image", x, y, names) for split, (x, y) in arrays.items()}


def _read_idx_file(file: str) -> NDArray[np.uint8]:
    try:
        raw = Path(file).read_bytes()
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot be read: {error}", where=file) from None
    if len(raw) < 4 or raw[:3] != b"\0\0\x08" or len(raw) < 4 + 4 * raw[3]:
        raise DataError("is not an IDX file of unsigned bytes (the MNIST format)", where=file)
    shape = np.frombuffer(raw, ">i4", count=raw[3], offset=4)
    values = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])
    expected = int(np.prod(shape, dtype=np.int64))
    if values.size != expected:
        raise DataError(
            f"is damaged: {values.size} values instead of {expected}",
            where=file,
            hint="Was the download cut off?",
        )
    return values.reshape(shape)


def read_sklearn(name: str) -> dict[str, Dataset]:
    """One of scikit-learn's embedded sets; ``digits`` are 8x8 images scaled to 0..1."""
    if name not in SKLEARN_SETS:
        raise DataError(
            f"scikit-learn has no embedded set '{name}' for classification",
            key=("data", "path"),
            hint=did_you_mean(name, SKLEARN_SETS),
            allowed=f"Sets: {', '.join(f'sklearn:{known}' for known in SKLEARN_SETS)}",
        )
    from sklearn import datasets as sets

    bunch = getattr(sets, f"load_{name}")()
    names = [str(label) for label in bunch.target_names]
    if name == "digits":
        values = (bunch.images / 16).astype(np.float32)
        return {"train": _dataset("image", values, bunch.target, names)}
    return {"train": _dataset("features", bunch.data.astype(np.float32), bunch.target, names)}


def _dataset(column: str, values: NDArray[Any], labels: NDArray[Any], names: list[str]) -> Dataset:
    """Arrays as a Dataset, without Dataset.from_dict, which takes seconds for 60 000 images.

    For the same reason the fingerprint is made here: Dataset would pickle the rows for it.
    """
    import datasets
    import pyarrow as pa

    features = datasets.Features(
        {column: _feature(values), "label": datasets.ClassLabel(names=names)}
    )
    schema = features.arrow_schema
    values, labels = np.ascontiguousarray(values), np.ascontiguousarray(labels, np.int64)
    fingerprint = xxhash.xxh3_128(f"{features} {values.shape}".encode())
    fingerprint.update(values.data)
    fingerprint.update(labels.data)
    storage: pa.Array = pa.array(values.reshape(-1))
    for axis in range(values.ndim - 1, 0, -1):
        count = int(np.prod(values.shape[:axis], dtype=np.int64))
        offsets = np.arange(count + 1, dtype=np.int32) * values.shape[axis]
        storage = pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), storage)
    if values.ndim > 2:
        storage = pa.ExtensionArray.from_storage(schema.field(column).type, storage)
    table = pa.Table.from_arrays([storage, pa.array(labels)], schema=schema)
    return datasets.Dataset(table, fingerprint=fingerprint.hexdigest())


def _feature(values: NDArray[Any]) -> Any:
    import datasets

    kind = str(values.dtype)
    if values.ndim == 2:
        return datasets.List(datasets.Value(kind))
    array = datasets.Array2D if values.ndim == 3 else datasets.Array3D
    return array(shape=values.shape[1:], dtype=kind)
