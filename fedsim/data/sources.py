"""Where rows come from: the Hub, local files, embedded sets, or the user's own function.

``load_rows`` turns a data section into ``Rows``. Every source is first read into a dict of whole
splits; ``train_split`` and ``test_split`` then pick rows in the Hugging Face split language
(``train[:2000]``). Parsed files are cached where ``datasets`` keeps its cache (``HF_HOME``).
"""

from __future__ import annotations

import gc
import glob
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fedsim import registry
from fedsim.data import embedded, splits
from fedsim.errors import DataError, FedsimError
from fedsim.scenario import DataSection

if TYPE_CHECKING:
    from datasets import Dataset

FORMATS = ("csv", "json", "parquet", "text")
"""Values of ``data.path`` that read ``data_files`` with datasets' own parsers."""
Splits = Mapping[str, "Dataset"]
"""Whole splits by name."""


@dataclass(frozen=True)
class Rows:
    """The rows of a scenario, before anyone owns them; ``test`` is None without a test split."""

    train: Dataset
    test: Dataset | None


def load_rows(section: DataSection) -> Rows:
    """Load the rows that a data section describes.

    Raises:
        DataError: A file is missing or unreadable, a split is not there or has no rows, the Hub
            cannot be reached, or the user's function failed.
    """
    check_files(section)
    whole = _load_splits(section)
    train = splits.ranges(whole, section.train_split, "train_split")
    if not _has_test(section, whole):
        return Rows(splits.take(whole, train), None)
    test = splits.ranges(whole, section.test_split, "test_split")
    splits.check_disjoint(train, test)
    return Rows(splits.take(whole, train), splits.take(whole, test))


def missing_files(section: DataSection) -> list[str]:
    """Local files that the section names and that do not exist."""
    return [
        file
        for file in _local_files(section)
        if not Path(file).is_file() and not any(Path(p).is_file() for p in glob.iglob(file))
    ]


def _files(section: DataSection) -> dict[str, list[str]]:
    """Files by split; nothing for sources that read none."""
    if section.path == "idx" and section.data_dir:
        return embedded.idx_files(section.data_dir)
    files = section.data_files or {}
    by_split = {"train": files} if isinstance(files, str) else files
    return {split: [f] if isinstance(f, str) else f for split, f in by_split.items()}


def _local_files(section: DataSection) -> list[str]:
    return [f for files in _files(section).values() for f in files if "://" not in f]


def _file_key(section: DataSection, file: str) -> tuple[str | int, ...]:
    if isinstance(section.data_files, dict):
        for split, files in section.data_files.items():
            if isinstance(files, str) and files == file:
                return ("data", "data_files", split)
            if not isinstance(files, str) and file in files:
                return ("data", "data_files", split, files.index(file))
    return ("data", "data_files" if section.data_files else "data_dir")


def check_files(section: DataSection) -> None:
    """Refuse files that are not there or empty, before anything is read.

    Raises:
        DataError: With the key that names the file.
    """
    if section.path in (*FORMATS, "idx") and not _files(section):
        folder = " (or data_dir)" if section.path == "idx" else ""
        raise DataError(
            f"the source '{section.path}' needs data_files{folder}",
            key=("data", "path"),
            hint="For example: data_files: {train: train.csv, test: test.csv}",
        )
    missing = missing_files(section)
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise DataError(
            f"the file {missing[0]} does not exist{more}",
            key=_file_key(section, missing[0]),
            hint=section.how_to_get,
        )
    for file in _local_files(section):
        if Path(file).is_file() and Path(file).stat().st_size == 0:
            raise DataError(f"the file {file} is empty", key=_file_key(section, file))


def _load_splits(section: DataSection) -> Splits:
    path = section.path
    function = ":" in path and "://" not in path and not path.startswith("sklearn:")
    if section.options and not (function or path in FORMATS):
        raise DataError(f"'{path}' takes no options", key=("data", "options"))
    if path in FORMATS:
        return _from_files(section)
    if path == "idx":
        return embedded.read_idx(_idx_pairs(section))
    if path.startswith("sklearn:"):
        return embedded.read_sklearn(path.removeprefix("sklearn:"))
    return _from_function(section) if function else _from_hub(section)


def _from_files(section: DataSection) -> Splits:
    files = _files(section)
    wanted = splits.check_names(files, section.train_split, "train_split")
    if _has_test(section, files):
        wanted |= splits.check_names(files, section.test_split, "test_split")
    chosen = {split: paths for split, paths in files.items() if split in wanted}
    import datasets

    shown = ", ".join(path for paths in chosen.values() for path in paths)
    with _quiet(), _readable(f"cannot be read as {section.path}", where=shown):
        return cast(
            Splits,
            datasets.load_dataset(section.path, data_files=chosen, **section.options),
        )


def _idx_pairs(section: DataSection) -> dict[str, list[str]]:
    files = _files(section)
    for split, pair in files.items():
        if len(pair) != 2:
            raise DataError(
                f"IDX data needs two files for '{split}', not {len(pair)}",
                key=("data", "data_files"),
                allowed="Write data_files: {train: [images, labels], test: [images, labels]}",
            )
    return files


def _from_function(section: DataSection) -> Splits:
    from datasets import Dataset

    try:
        function = registry.import_object(section.path)
    except FedsimError as error:
        error.key = ("data", "path")
        raise
    label = f"data function '{section.path}'"
    try:
        options = registry.check_options(function, section.options, label)
    except FedsimError as error:
        error.key = ("data", "options", *error.key) if error.key else ("data", "path")
        raise
    with _readable(f"the {label} failed", key=("data", "path")):
        result = function(**options)
    given = dict(result) if isinstance(result, Mapping) else {"train": result}
    for split, value in given.items():
        if not isinstance(value, Dataset):
            raise DataError(
                f"the {label} gave {type(value).__name__} for '{split}'",
                key=("data", "path"),
                allowed="It returns a datasets.Dataset, or a dict of them with 'train'",
            )
    return {str(split): value.with_format(None) for split, value in given.items()}


def _from_hub(section: DataSection) -> Splits:
    import datasets

    offline = datasets.config.HF_HUB_OFFLINE
    hint = section.how_to_get or (
        "HF_HUB_OFFLINE is set: unset it, or give local files with path: csv, json or parquet"
        if offline
        else "Check the id, and the network; or give local files with path: csv, json or parquet"
    )
    what = f"the data set '{section.path}' cannot be loaded from the Hub"
    with _readable(what, key=("data", "path"), hint=hint):
        loaded = datasets.load_dataset(
            section.path,
            section.name,
            data_dir=section.data_dir,
            data_files=section.data_files,
            revision=section.revision,
        )
    return cast(Splits, loaded)


@contextmanager
def _readable(what: str, **place: Any) -> Iterator[None]:
    """Turn an exception of a library or of the user's code into a DataError with its cause."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # parsers leave a failed file open
        try:
            yield
        except FedsimError:
            raise
        except Exception as error:
            reason = _root_cause(error)
            _let_go(error)
            raise DataError(f"{what}: {reason}", **place) from None


def _root_cause(error: BaseException) -> str:
    """The cause in one line; DatasetGenerationError only says that there is one."""
    while type(error).__name__ == "DatasetGenerationError" and error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text if len(text) <= 300 else text[:300] + ' ...'}"


def _let_go(error: BaseException) -> None:
    """Close the files that a parser's frames hold, while the warning about it is ignored."""
    inner: BaseException | None = error
    while inner is not None:
        traceback.clear_frames(inner.__traceback__)
        inner = inner.__cause__ or inner.__context__
    gc.collect()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars and log lines, for files that take moments."""
    import datasets

    bars, verbosity = datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if not bars:
            datasets.enable_progress_bars()


def _has_test(section: DataSection, known: Mapping[str, Any]) -> bool:
    """Whether there is a test split; one that the user named must exist."""
    named = "test_split" in section.model_fields_set
    return named or splits.names(section.test_split) <= known.keys()
