"""Any torch module: columns of numbers in, a loss of ``torch.nn.functional`` out.

For tabular data and for own networks given as ``model: {name: "module:function"}``. A task of
another shape is a class of one's own: ``task: {name: "my_module:MyObjective"}``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsim.errors import ModelError
from fedsim.models import load
from fedsim.scenario import ModelSection
from fedsim.task import Batch, Objective, Totals
from fedsim.tasks.image_classification import classification_metrics, classification_totals, column

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

    feature_columns: list[str] = field(default_factory=lambda: ["features"])
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
            np.asarray(column(rows, name, "feature_columns"), dtype=np.float32).reshape(
                len(rows), -1
            )
            for name in self.feature_columns
        ]
        kind = np.int64 if self.loss_function == "cross_entropy" else np.float32
        labels = np.asarray(column(rows, self.label_column, "label_column"), dtype=kind)
        features = np.concatenate(parts, axis=1)
        return {"features": torch.from_numpy(features), "labels": torch.from_numpy(labels)}

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
        result: Tensor = getattr(functional, self.loss_function)(outputs, labels)
        return result
