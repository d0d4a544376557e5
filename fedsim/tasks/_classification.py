"""What all tasks with classes share: their loss and their scores."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from fedsim.errors import DataError
from fedsim.task import Totals


def cross_entropy(logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    """Cross entropy.

    Raises:
        DataError: A label is none of the model's classes.
    """
    try:
        return functional.cross_entropy(logits, labels, reduction=reduction)
    except IndexError:
        raise DataError(
            f"the label {int(labels.max())} is none of the {logits.shape[1]} classes that the "
            "model tells apart",
            key=("task", "label_column"),
            allowed="Labels are whole numbers from 0, below the number of classes",
        ) from None


def classification_totals(logits: Tensor, labels: Tensor) -> Totals:
    """Summed cross entropy, correct answers and rows of a batch."""
    return {
        "loss": cross_entropy(logits, labels, reduction="sum").item(),
        "correct": float((logits.argmax(-1) == labels).sum()),
        "rows": float(len(labels)),
    }


def classification_metrics(totals: Totals) -> dict[str, float]:
    """Accuracy and mean cross entropy of summed totals."""
    rows = totals["rows"]
    return {"accuracy": totals["correct"] / rows, "loss": totals["loss"] / rows}
