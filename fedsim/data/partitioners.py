"""Partitioners by name: find one, check its options, run it on rows.

Those of flwr-datasets list each client's rows, which serves up to about 100,000 clients; a name is
the class name in snake case (``DirichletPartitioner`` is ``dirichlet``) and the options are the
class's own arguments, except ``num_partitions``, which is the scenario's ``num_clients``. Those of
``fedsim.data.lazy`` draw a client's rows when they are asked for.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedsim import registry
from fedsim.data.lazy import LAZY, LazyOwned, LazyPartitioner
from fedsim.data.names import available, classes
from fedsim.errors import DataError, FedsimError, did_you_mean
from fedsim.scenario import Plugin
from fedsim.seeds import Seeds

if TYPE_CHECKING:
    from datasets import Dataset

KEY = ("data", "partitioner")
CONVERT: dict[str, Callable[[Any], Any]] = {
    "distribution_array": np.asarray,
    "partition_id_to_size_fn": registry.import_object,
}
"""Options whose values are no YAML types: how they are made from what is written."""

_log = logging.getLogger(__name__)


class Iid:
    """``IidPartitioner`` of flwr-datasets, whose import takes over a second: equal parts."""

    def __init__(self, *, num_partitions: int) -> None:
        self.num_partitions = num_partitions

    def split(self, order: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Cut the rows; the first parts have one row more where it does not come out even."""
        return np.array_split(order, self.num_partitions)


def find(name: str) -> type:
    """The class behind a partitioner's name: snake case, the class name, or ``module:Class``.

    Raises:
        DataError: There is no such partitioner, or it splits columns instead of rows.
    """
    if name == "iid":
        return Iid
    target = LAZY[name] if name in LAZY else _imported(name) if ":" in name else None
    if isinstance(target, type) and issubclass(target, LazyPartitioner):
        return target
    by_class = {class_name: snake for snake, (class_name, _) in classes().items()}
    snake = by_class.get(name, name)
    if ":" not in name and snake not in classes():
        raise DataError(
            f"there is no partitioner called '{name}'",
            key=(*KEY, "name"),
            hint=did_you_mean(name, available()),
            allowed=f"Known: {', '.join(available())}; or module:Class",
        )
    if snake.startswith("vertical"):
        raise _vertical(name)
    from flwr_datasets import partitioner as package

    target = target or getattr(package, classes()[snake][0])
    if not (isinstance(target, type) and issubclass(target, package.Partitioner)):
        raise DataError(
            f"'{name}' is no subclass of flwr_datasets.partitioner.Partitioner, "
            "nor of fedsim.data.lazy.LazyPartitioner",
            key=(*KEY, "name"),
        )
    if issubclass(target, (package.VerticalEvenPartitioner, package.VerticalSizePartitioner)):
        raise _vertical(name)
    return target


def _imported(name: str) -> Any:
    try:
        return registry.import_object(name)
    except FedsimError as error:
        error.key = (*KEY, "name")
        raise


def _vertical(name: str) -> DataError:
    return DataError(
        f"the partitioner '{name}' splits columns; here each client owns whole rows",
        key=(*KEY, "name"),
        allowed=f"Partitioners of rows: {', '.join(available())}",
    )


def check(plugin: Plugin) -> dict[str, Any]:
    """Check the partitioner's name and options, without data.

    Returns:
        The options, converted to what the class takes.

    Raises:
        FedsimError: A DataError or PluginError with the key of the wrong value.
    """
    target = find(plugin.name)
    if "num_partitions" in plugin.options:
        raise DataError(
            "'num_partitions' is not set here",
            key=(*KEY, "num_partitions"),
            hint="Set num_clients at the top level",
        )
    label = f"partitioner '{plugin.name}'"
    try:
        with _keyed():
            given = {k: CONVERT[k](v) if k in CONVERT else v for k, v in plugin.options.items()}
            return registry.check_options(target, given, label, also_given=("num_partitions",))
    except ValueError as error:
        raise DataError(f"options of {label}: {error}", key=KEY) from None


@contextlib.contextmanager
def _keyed() -> Iterator[None]:
    """Let errors that name an option name its place in the scenario."""
    try:
        yield
    except FedsimError as error:
        error.key = (*KEY, *error.key)
        raise


def assign(
    plugin: Plugin,
    num_clients: int | None,
    train: Dataset,
    pool: NDArray[np.int64],
    seeds: Seeds,
) -> list[NDArray[np.int64]]:
    """Give each client its rows of ``pool``, with a partitioner of flwr-datasets.

    Rows are shuffled first, as ``FederatedDataset`` does: several partitioners (``iid``, ``size``)
    cut consecutive blocks. Both draws come from the streams ``partition``; a ``seed`` among the
    options fixes both whatever the run's seed.

    Returns:
        Row numbers of ``train`` by client.
    """
    target, options = find(plugin.name), check(plugin)
    _check_counts(plugin, target, options, num_clients, len(pool))
    fixed = options.pop("seed", None)
    seeds = seeds if fixed is None else Seeds(fixed)
    order = seeds.numpy("partition", "order").permutation(pool)
    if "seed" in registry.options(target):
        options["seed"] = seeds.integer("partition") % 2**32 if fixed is None else fixed
    if "num_partitions" in registry.options(target):
        options["num_partitions"] = num_clients
    if target is Iid:
        return Iid(**options).split(order)
    table, values = _table(target, options, train, order)
    with _readable(plugin, options, values):
        parts = _run(target(**options), table, num_clients)
    return [order[part] for part in parts]


def assign_lazily(
    plugin: Plugin,
    num_clients: int | None,
    train: Dataset,
    pool: NDArray[np.int64],
    seeds: Seeds,
) -> LazyOwned:
    """Let each client draw its rows of ``pool`` when asked, with a partitioner of ``lazy``."""
    target, options = find(plugin.name), check(plugin)
    if num_clients is None:
        raise _needs_num_clients(plugin)
    sizes = np.array([len(pool)])
    if column := options.get("partition_by"):
        _check_column(train, column)
        values = _column(train, column).to_numpy()[pool]
        _, codes, sizes = np.unique(values, return_inverse=True, return_counts=True)
        pool = pool[np.argsort(codes, kind="stable")]
    with _keyed():
        partitioner: LazyPartitioner = target(**options)
        partitioner.check(sizes)
    seeds = seeds if partitioner.seed is None else Seeds(partitioner.seed)
    return LazyOwned(partitioner, pool, sizes, num_clients, seeds)


def _check_counts(
    plugin: Plugin, target: type, options: dict[str, Any], num_clients: int | None, rows: int
) -> None:
    if num_clients is None and "num_partitions" in registry.options(target):
        raise _needs_num_clients(plugin)
    if num_clients is not None and num_clients > rows:
        raise DataError(
            f"there are {num_clients} clients but only {rows} training rows",
            key=("num_clients",),
            hint="Lower num_clients, use more data, or let clients share rows with one of "
            f"{', '.join(LAZY)}",
        )
    least = registry.options(target).get("min_partition_size")
    size = options.get("min_partition_size", least.default) if least else None
    if size is not None and num_clients is not None and size * num_clients > rows:
        raise DataError(
            f"{num_clients} clients of at least {size} rows (min_partition_size) need "
            f"{size * num_clients} training rows, and there are {rows}",
            key=(*KEY, "min_partition_size"),
            hint="Lower num_clients or min_partition_size",
        )


def _needs_num_clients(plugin: Plugin) -> DataError:
    return DataError(f"the partitioner '{plugin.name}' needs num_clients at the top level", key=KEY)


def _table(
    target: type, options: dict[str, Any], train: Dataset, order: NDArray[np.int64]
) -> tuple[Dataset, list[Any]]:
    """The rows in ``order`` with what the partitioner needs, and what label codes mean."""
    import pyarrow as pa

    from fedsim.data import slim

    column = options.get("partition_by")
    if column is not None:
        _check_column(train, column)
    if not target.__module__.startswith("flwr_datasets."):  # may look at any column
        table = train.with_format("arrow")[:].take(order)
        return slim.build(table.combine_chunks(), exact=True), []
    if column is None:
        return slim.build(pa.table({"position": np.arange(len(order))}), exact=False), []
    values = _column(train, column).to_numpy()[order]
    if "strictness" in registry.options(target):  # a real-valued column
        return slim.build(pa.table({column: values}), exact=False), []
    # Labels become 0, 1, ... in sorted order: some partitioners take no strings and no gaps.
    labels, codes = np.unique(values, return_inverse=True)
    return slim.build(pa.table({column: codes}), exact=False), labels.tolist()


def _column(train: Dataset, column: str) -> Any:
    return train.select_columns([column]).with_format("arrow")[:].column(column)


def _check_column(train: Dataset, column: str) -> None:
    import pyarrow as pa

    key = (*KEY, "partition_by")
    if column not in train.column_names:
        raise DataError(
            f"the data has no column '{column}'",
            key=key,
            hint=did_you_mean(column, train.column_names),
            allowed=f"Columns: {', '.join(train.column_names)}",
        )
    values = _column(train, column)
    if pa.types.is_nested(values.type) or isinstance(values.type, pa.ExtensionType):
        raise DataError(f"the column '{column}' holds lists, not one value a row", key=key)
    if values.null_count:
        raise DataError(
            f"the column '{column}' has {values.null_count} rows without a value",
            key=key,
            hint="Fill them in, or drop those rows",
        )


def _run(partitioner: Any, table: Dataset, num_clients: int | None) -> list[NDArray[np.int64]]:
    from fedsim.data import slim

    partitioner.dataset = table
    count = partitioner.num_partitions
    if num_clients is not None and count != num_clients:
        raise DataError(
            f"the partitioner makes {count} clients, but num_clients is {num_clients}",
            key=("num_clients",),
            hint=f"Leave num_clients out, or set it to {count}",
        )
    return [slim.row_numbers(partitioner.load_partition(i)) for i in range(count)]


@contextlib.contextmanager
def _readable(plugin: Plugin, options: dict[str, Any], labels: list[Any]) -> Iterator[None]:
    """Errors of the partitioner as DataError, its warnings in the log, no progress bars."""
    try:
        with (
            warnings.catch_warnings(record=True) as caught,
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("always")
            yield
    except FedsimError:
        raise
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"the partitioner '{plugin.name}' cannot split these rows: {text}",
            key=KEY,
            hint=_hint(options, labels),
        ) from error
    for message in dict.fromkeys(str(w.message) for w in caught if w.category is UserWarning):
        if "will be repeated" not in message:  # an attempt that failed before one that did not
            _log.warning("partitioner '%s': %s", plugin.name, message)


def _hint(options: dict[str, Any], labels: list[Any]) -> str:
    hints = []
    if labels and labels != list(range(len(labels))):
        shown = ", ".join(f"{i} = {label}" for i, label in enumerate(labels[:10]))
        hints.append(f"Values of '{options['partition_by']}' are numbered in order: {shown}")
    if "alpha" in options:
        smaller = ", or a smaller min_partition_size" if "num_partitions" in options else ""
        hints.append(f"Try a larger alpha, fewer clients{smaller}")
    return "; ".join(hints)
