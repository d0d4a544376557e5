"""Any torch module: columns of numbers in, a loss of ``torch.nn.functional`` out.

For tabular data and for own networks given as ``model: {name: "module:function"}``. A task of
another shape is a class of one's own: ``task: {name: "my_module:MyObjective"}``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from fedsim.errors import ModelError
from fedsim.models import load
from fedsim.scenario import ModelSection
from fedsim.task import Batch, Objective, Totals

from ._classification import classification_metrics, classification_totals, cross_entropy
from ._columns import classes, column, numbers

if TYPE_CHECKING:
    from datasets import Dataset

Loss = Literal["cross_entropy", "mse_loss", "l1_loss", "huber_loss"]


@dataclass(kw_only=True)
class TorchModule(Objective):
    """A module from features to logits or values.

    Args:
        feature_columns: Columns joined to the input (rows, features); vectors are allowed.
        label_column: Column of the target.
        loss_function: ``cross_entropy`` (labels are classes) or a regression loss.
    """

    key_metric: ClassVar[tuple[str, Any]] = ("loss", "min")

    feature_columns: Annotated[list[str], Field(min_length=1)] = field(
        default_factory=lambda: ["features"]
    )
    label_column: str = "label"
    loss_function: Loss = "cross_entropy"

    def __post_init__(self) -> None:
        if self.loss_function == "cross_entropy":
            self.key_metric = ("accuracy", "max")  # type: ignore[misc]

    def build_model(self, section: ModelSection, train: Dataset) -> nn.Module:
        """Call the user's function with ``model.options``."""
        if section.name is None or not load.is_function(section.name):
            raise ModelError("this task needs 'model: {name: module:function}'", key=("model",))
        return load.from_function(section.name, section.options, {})

    def encode(self, rows: Dataset) -> Batch:
        """``features`` float32 (rows, features) and ``labels`` (rows,)."""
        parts = [
            numbers(column(rows, name, "feature_columns"), name, "feature_columns")
            for name in self.feature_columns
        ]
        features = np.concatenate([part.reshape(len(rows), -1) for part in parts], axis=1)
        targets = column(rows, self.label_column, "label_column")
        if self.loss_function == "cross_entropy":
            labels = torch.from_numpy(classes(targets, self.label_column))
        else:
            labels = torch.from_numpy(numbers(targets, self.label_column, "label_column"))
        return {"features": torch.from_numpy(features), "labels": labels}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean of the loss function."""
        return self._loss(self._outputs(model, batch), batch["labels"])

    def totals(self, model: nn.Module, batch: Batch) -> Totals:
        """Summed loss, correct answers where labels are classes, rows."""
        outputs = self._outputs(model, batch)
        if self.loss_function == "cross_entropy":
            return classification_totals(outputs, batch["labels"])
        rows = float(len(outputs))
        return {"loss": self._loss(outputs, batch["labels"]).item() * rows, "rows": rows}

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Mean loss, and accuracy where labels are classes."""
        if self.loss_function == "cross_entropy":
            return classification_metrics(totals)
        return {"loss": totals["loss"] / totals["rows"]}

    def _outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        outputs: Tensor = model(batch["features"])
        return outputs if self.loss_function == "cross_entropy" else outputs.squeeze(-1)

    def _loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        if self.loss_function == "cross_entropy":
            return cross_entropy(outputs, labels)
        result: Tensor = getattr(functional, self.loss_function)(outputs, labels)
        return result
