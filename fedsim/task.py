"""The task: model, adapter, data, loss and metrics of a scenario, resident in one process.

``Objective`` is the contract of a task plug-in (``fedsim/tasks/``): which model class, how rows
become tensors, what is minimised and what is reported. ``Task`` binds an objective to a model and
its data, and is what workers and client methods hold. Only this module, ``fedsim/tasks``,
``fedsim/models`` and ``fedsim/data`` know transformers, peft and datasets.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedsim import registry
from fedsim.arrays import Arrays, conform, subtract
from fedsim.data.partition import Split
from fedsim.models import adapt, device, execution, warm_start
from fedsim.models.answers import Answers
from fedsim.models.prefix import FrozenPrefix, Rows, pick
from fedsim.models.prefix import find as find_prefix
from fedsim.scenario import ModelSection, Scenario
from fedsim.seeds import Seeds

if TYPE_CHECKING:
    from datasets import Dataset

Batch = dict[str, Tensor]
"""Named tensors whose first dimension runs over rows."""
Totals = dict[str, float]
"""Sums over rows, such as ``{"loss": 12.3, "correct": 7.0, "rows": 10.0}``."""
CACHE_BYTES = 512 * 2**20
"""Memory budget of a worker for the encoded rows of recently used clients."""
PREFIX_BYTES = 512 * 2**20
"""Budget of a worker for what frozen blocks answer to rows, in memory or in files."""


class Objective(ABC):
    """What a kind of task decides. Subclasses are plug-ins; options are constructor arguments."""

    is_plugin: ClassVar[bool] = True
    key_metric: ClassVar[tuple[str, Literal["max", "min"]]]
    """The metric that a run is judged by, and its better direction."""

    @abstractmethod
    def build_model(self, section: ModelSection, train: Dataset) -> nn.Module:
        """Build the network; called once per process, with torch's global generator seeded.

        ``train`` is the whole training set (for label names or a tokenizer), before it is split.
        """

    @abstractmethod
    def encode(self, rows: Dataset) -> Batch:
        """Turn rows into tensors; called once per client and once for the test set."""

    def collate(self, data: Batch, index: Tensor) -> Batch:
        """Pick rows of encoded data as one batch; text tasks trim padding here."""
        return {name: tensor[index] for name, tensor in data.items()}

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean training loss of a batch, a scalar with gradient."""

    @abstractmethod
    def totals(self, model: nn.Module, batch: Batch) -> Totals:
        """Sums over the batch from which ``metrics`` computes scores; called without gradient."""

    @abstractmethod
    def metrics(self, totals: Totals) -> dict[str, float]:
        """Scores of a test set from its summed totals; must have ``key_metric`` and ``loss``."""

    def final_metrics(self, model: nn.Module, rows: Dataset) -> dict[str, float]:
        """Scores that are too slow for every round (generated text); none by default."""
        return {}


class Task:
    """A resident model with its data; reset in place for every client.

    Args:
        scenario: What to build.
        split: Rows, and which of them each client, the server and the test set own.
        seed: Root seed; initial weights depend on it.
        scratch: A folder that the run's processes on this machine share, if there is one.
    """

    def __init__(
        self, scenario: Scenario, split: Split, seed: int, scratch: Path | None = None
    ) -> None:
        seeds = Seeds(seed)
        self.split = split
        self.objective: Objective = registry.build("tasks", scenario.task.section)
        seeds.seed_globals("model")
        network = self.objective.build_model(scenario.model, split.train)
        if scenario.model.warm_start:
            warm_start.apply(network, self.objective, scenario, split, seeds)
        seeds.seed_globals("adapter")
        self.model = adapt.wrap(network, scenario.model)
        if scenario.model.dtype == "bfloat16":
            execution.use_bfloat16(self.model, network)
        if scenario.model.memory_format == "channels_last":
            execution.use_channels_last(self.model)
        self.device = device.choose(scenario.engine.gpus_per_worker)
        self.model.to(self.device)
        self.parameters: dict[str, nn.Parameter] = {
            name: p for name, p in self.model.named_parameters() if p.requires_grad
        }
        self._tensors = {**self.parameters, **adapt.running_statistics(self.model)}
        self._buffers = [(b, b.clone()) for b in self.model.buffers()]
        self._cache: OrderedDict[tuple[str, int], Batch] = OrderedDict()
        self._cache_bytes = 0
        self._prefix: FrozenPrefix | None = None
        self._prefix = find_prefix(self.model, self._sample_loss)
        self._reset_buffers()
        self._answers = Answers(
            PREFIX_BYTES if scenario.engine.cache_prefix else 0,
            scratch if self.device.type == "cpu" else None,
        )
        if scenario.model.compile:
            execution.compile_in_place(self.model)

    def _sample_loss(self) -> Tensor:
        """The loss of up to two training rows, to try out the model."""
        rows = self.split.train
        data = self.objective.encode(rows.select(range(min(2, len(rows)))))
        return self.loss(self.objective.collate(data, torch.arange(num_rows(data))))

    def trainable(self) -> Arrays:
        """Copies of everything that is trained and exchanged, by parameter name."""
        return {name: x.copy() for name, x in self._views().items()}

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Set the exchanged tensors in place and every other buffer to its initial value.

        Raises:
            PayloadError: Names or shapes differ from the model's.
        """
        self._reset_buffers()
        views = self._views()
        for name, value in conform(arrays, views).items():
            np.copyto(views[name], value)  # a copy: the source may be shared memory
        if not self._views_are_memory:
            self._write(views)

    @property
    def _views_are_memory(self) -> bool:
        return self.device.type == "cpu"

    def _write(self, arrays: Arrays) -> None:
        """Bring arrays to where the model computes."""
        with torch.no_grad():
            for name, tensor in self._tensors.items():
                tensor.copy_(torch.from_numpy(arrays[name]))

    def _reset_buffers(self) -> None:
        with torch.no_grad():
            for buffer, initial in self._buffers:
                buffer.copy_(initial)

    def _views(self) -> Arrays:
        """The exchanged tensors as arrays: their own memory on the CPU, a copy from elsewhere."""
        return self.fetched({name: t.detach() for name, t in self._tensors.items()})

    def placed(self, arrays: Arrays) -> Arrays | dict[str, Tensor]:
        """Arrays where the model computes: themselves on the CPU, tensors elsewhere."""
        if self._views_are_memory:
            return arrays
        return {name: torch.tensor(x, device=self.device) for name, x in arrays.items()}

    def fetched(self, placed: Mapping[str, NDArray[Any] | Tensor]) -> Arrays:
        """What ``placed`` brought there, as arrays again."""
        return {n: x.cpu().numpy() if isinstance(x, Tensor) else x for n, x in placed.items()}

    def difference(self, received: Mapping[str, NDArray[Any]]) -> Arrays:
        """The wire's delta: current value minus ``received``, by name."""
        return subtract(self._views(), received)

    def client_data(self, client: int, part: Literal["train", "test"] = "train") -> Batch:
        """The encoded rows of a client; converted once and kept within a memory budget."""
        key = (part, client)
        if self._all_rows is not None:
            index = torch.from_numpy(self.split.client_indices(client, part))
            return self._answer(key, {name: t[index] for name, t in self._all_rows.items()})
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._answer(key, self._cache[key])
        data = self.objective.encode(self.split.client_rows(client, part))
        self._cache[key] = data
        self._cache_bytes += _size(data)
        while self._cache_bytes > CACHE_BYTES and len(self._cache) > 1:
            self._cache_bytes -= _size(self._cache.popitem(last=False)[1])
        return self._answer(key, data)

    def _answer(self, key: tuple[str, int], data: Batch) -> Batch:
        """Encoded rows with what frozen blocks answer to them, kept while the budget lasts."""
        if self._prefix is None:
            return data
        attach = partial(self._prefix.attach, data, self.objective.collate, self.loss)
        part, client = key
        return self._answers.of(f"{part}-{client}", attach)

    @cached_property
    def _all_rows(self) -> Batch | None:
        """Every training row, encoded, where clients share rows and the budget has room."""
        rows = self.split.rows.train
        if not self.split.shares_rows:
            return None
        row_bytes = _size(self.objective.encode(rows.select([0])))
        return self.objective.encode(rows) if row_bytes * len(rows) <= CACHE_BYTES else None

    def collate(self, data: Batch, index: Tensor) -> Batch:
        """Rows of ``client_data`` or ``test_data`` as one batch, where the model computes."""
        batch = pick(data, index, self.objective.collate(data, index))
        return device.place(batch, self.device)

    def rows(self, batch: Batch, rows: slice) -> Batch:
        """Some rows of a batch, with what frozen blocks answer to them."""
        part = {name: tensor[rows] for name, tensor in batch.items()}
        return Rows(part, batch.hidden[rows]) if isinstance(batch, Rows) else part

    def loss(self, batch: Batch) -> Tensor:
        """Mean training loss of a batch, with gradient."""
        batch = device.place(batch, self.device)
        with self._shortcut(batch):
            return self.objective.loss(self.model, batch)

    def _shortcut(self, batch: Batch) -> AbstractContextManager[None]:
        """Within it, the model does not compute again what ``batch`` brings along."""
        return nullcontext() if self._prefix is None else self._prefix.answering(batch)

    def set_training(self, training: bool) -> None:
        """Training or evaluation mode; torch walks through all modules, so only for a change."""
        if self.model.training != training:
            self.model.train(training)

    def evaluate(self, data: Batch, batch_size: int) -> Totals:
        """Sums over all rows of ``data``, in a fixed order, in evaluation mode."""
        self.set_training(False)
        totals: Totals = {}
        with torch.no_grad():
            for start in range(0, num_rows(data), batch_size):
                index = torch.arange(start, min(start + batch_size, num_rows(data)))
                batch = self.collate(data, index)
                with self._shortcut(batch):
                    add_totals(totals, self.objective.totals(self.model, batch))
        return totals

    def test_data(self, shard: int, num_shards: int) -> Batch:
        """One fixed shard of the global test set, encoded and cached."""
        key = (f"global/{num_shards}", shard)
        if key not in self._cache:
            rows = np.array_split(np.arange(len(self.split.test)), num_shards)[shard]
            self._cache[key] = self.objective.encode(self.split.test.select(rows))
            self._cache_bytes += _size(self._cache[key])
        return self._answer(key, self._cache[key])


def num_rows(data: Batch) -> int:
    """Rows in encoded data."""
    return next(iter(data.values())).shape[0]


def add_totals(into: Totals, more: Mapping[str, float]) -> None:
    """Add sums in place."""
    for name, value in more.items():
        into[name] = into.get(name, 0.0) + float(value)


def merge_totals(parts: Sequence[Mapping[str, float]]) -> Totals:
    """Sum of several totals, in the given order."""
    result: Totals = {}
    for part in parts:
        add_totals(result, part)
    return result


def _size(data: Batch) -> int:
    return sum(t.numel() * t.element_size() for t in data.values())
