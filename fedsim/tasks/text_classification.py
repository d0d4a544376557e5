"""Text classification: one label per text or pair of texts, cross entropy, accuracy.

Models are transformers sequence classifiers (from a config, a folder or the Hub) or any
``module:function`` that maps ``input_ids`` and ``attention_mask`` to logits.
"""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from fedsim.errors import DataError
from fedsim.models import load, tokenizer
from fedsim.scenario import ModelSection
from fedsim.task import Batch, Objective, Totals

from . import _text
from ._classification import classification_metrics, classification_totals, cross_entropy
from ._columns import check_column

if TYPE_CHECKING:
    from datasets import Dataset

Pair = Annotated[list[str], Field(min_length=2, max_length=2)]


@dataclass(kw_only=True)
class TextClassification(Objective):
    """Texts to classes.

    Args:
        text_column: Column of texts, or two columns for pairs (question and answer, ...).
        label_column: Column of classes: integers, strings or a ``ClassLabel``. Integers and
            strings are numbered in sorted order of the training set's values.
        max_length: Longer texts are cut to this many tokens.
    """

    key_metric: ClassVar[tuple[str, Any]] = ("accuracy", "max")

    text_column: str | Pair = "text"
    label_column: str = "label"
    max_length: PositiveInt = 64
    _labels: dict[Hashable, int] = field(init=False, repr=False, default_factory=dict)
    _tokenizer: Any = field(init=False, repr=False, default=None)
    _segments: bool = field(init=False, repr=False, default=False)

    def build_model(self, section: ModelSection, train: Dataset) -> nn.Module:
        """A classifier with the training set's labels, and the tokenizer that goes with it."""
        for column in self._columns:
            check_column(train, column, "text_column")
        self._labels = _numbered_labels(train, self.label_column)
        self._tokenizer = tokenizer.build(section, self._all_texts(train))
        model = load.build(
            section,
            "AutoModelForSequenceClassification",
            num_labels=len(self._labels),
            vocab_size=len(self._tokenizer),
            pad_token_id=self._tokenizer.pad_token_id,
            bos_token_id=self._tokenizer.bos_token_id,
            eos_token_id=self._tokenizer.eos_token_id,
        )
        _text.check_room(self._tokenizer, self._columns, self.max_length)
        _text.check_fit(model, self._tokenizer, section, self.max_length)
        self._segments = (
            len(self._columns) == 2
            and "token_type_ids" in self._tokenizer.model_input_names
            and "token_type_ids" in inspect.signature(model.forward).parameters
        )
        return model

    @property
    def _columns(self) -> list[str]:
        return [self.text_column] if isinstance(self.text_column, str) else self.text_column

    def _all_texts(self, rows: Dataset) -> Iterator[str]:
        for column in self._columns:
            yield from _text.texts(rows, column)

    def encode(self, rows: Dataset) -> Batch:
        """``input_ids`` and ``attention_mask`` (rows, max_length), ``labels`` (rows,), int64.

        Pairs of a model that tells segments apart have ``token_type_ids`` too.
        """
        for column in self._columns:
            check_column(rows, column, "text_column")
        encoded = _text.tokenize(
            self._tokenizer,
            *(_text.texts(rows, column) for column in self._columns),
            truncation=True,
            max_length=self.max_length,
            return_token_type_ids=self._segments,
        )
        ids = encoded["input_ids"]
        batch = {
            "input_ids": _text.padded(ids, self.max_length, self._tokenizer.pad_token_id),
            "attention_mask": _text.attention_mask(ids, self.max_length),
            "labels": torch.tensor(self._label_ids(rows), dtype=torch.long),
        }
        if self._segments:
            batch["token_type_ids"] = _text.padded(encoded["token_type_ids"], self.max_length, 0)
        return batch

    def _label_ids(self, rows: Dataset) -> list[int]:
        values = _label_values(rows, self.label_column)
        unseen = next((value for value in values if value not in self._labels), None)
        if unseen is not None:
            raise DataError(
                f"the label {unseen!r} is not among the training set's",
                key=("task", "label_column"),
                allowed=f"Labels: {', '.join(map(repr, self._labels))}",
                hint="Does the test set come from the same data?",
            )
        return [self._labels[value] for value in values]

    def collate(self, data: Batch, index: Tensor) -> Batch:
        """The rows as one batch, trimmed to its longest text."""
        return _text.pick_trimmed(data, index)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross entropy."""
        return cross_entropy(_text.logits(model, batch), batch["labels"])

    def totals(self, model: nn.Module, batch: Batch) -> Totals:
        """Summed cross entropy, correct answers, rows."""
        return classification_totals(_text.logits(model, batch), batch["labels"])

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Accuracy and mean cross entropy."""
        return classification_metrics(totals)


def _numbered_labels(train: Dataset, column: str) -> dict[Hashable, int]:
    """Class numbers by label value, in sorted order."""
    from datasets import ClassLabel

    values = _label_values(train, column)
    feature = train.features[column]
    if isinstance(feature, ClassLabel):
        labels: list[Any] = list(range(feature.num_classes))
    else:
        labels = sorted(set(values))
    if len(labels) < 2:
        raise DataError(
            f"the column '{column}' has only the label {labels[0]!r}"
            if labels
            else f"the column '{column}' has no labels",
            key=("task", "label_column"),
            hint="Classification needs at least two",
        )
    return {value: number for number, value in enumerate(labels)}


def _label_values(rows: Dataset, column: str) -> list[Any]:
    check_column(rows, column, "label_column")
    values = rows[column][:]
    odd = next((value for value in values if not isinstance(value, int | str)), ...)
    if odd is not ...:
        raise DataError(
            f"the column '{column}' has the value {odd!r}",
            key=("task", "label_column"),
            allowed="Labels are integers or strings, one for every row",
        )
    return list(values)
