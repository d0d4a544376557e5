"""Image classification: one label per image, cross entropy, accuracy.

Models are transformers image classifiers (from a config, a folder or the Hub) or any
``module:function`` that maps images (rows, channels, height, width) to logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from fedsim.errors import DataError
from fedsim.models import load
from fedsim.scenario import ModelSection
from fedsim.task import Batch, Objective, Totals

from ._classification import classification_metrics, classification_totals, cross_entropy
from ._columns import classes, column

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(kw_only=True)
class ImageClassification(Objective):
    """Images to classes.

    Args:
        image_column: Column of images: PIL images, or arrays HxW, HxWxC or CxHxW.
        label_column: Column of class labels, integers from 0.
        image_size: Resize images to this many pixels a side (bilinear); none keeps their size.
        mean: Subtracted from each channel after 8-bit images are scaled to 0..1.
        std: Each channel is divided by this after the mean is subtracted.
    """

    key_metric: ClassVar[tuple[str, Any]] = ("accuracy", "max")

    image_column: str = "image"
    label_column: str = "label"
    image_size: PositiveInt | None = None
    mean: list[float] | None = None
    std: list[float] | None = None

    def build_model(self, section: ModelSection, train: Dataset) -> nn.Module:
        """A classifier for the images' size and as many classes as there are labels."""
        sample = self.encode(train.select([0]))["images"]
        num_labels = int(self._labels(train).max()) + 1
        return load.build(
            section,
            "AutoModelForImageClassification",
            num_labels=num_labels,
            num_channels=sample.shape[1],
            image_size=sample.shape[2],
        )

    def encode(self, rows: Dataset) -> Batch:
        """``images`` float32 (rows, channels, height, width) and ``labels`` int64 (rows,)."""
        images = _to_tensor(column(rows, self.image_column, "image_column"), self.image_column)
        if _is_8_bit(rows.info.features[self.image_column]):
            images.div_(255)
        if self.image_size:
            size = (self.image_size, self.image_size)
            images = functional.interpolate(images, size, mode="bilinear", align_corners=False)
        self._check_channels(images.shape[1])
        if self.mean:
            images.sub_(torch.tensor(self.mean).view(1, -1, 1, 1))
        if self.std:
            images.div_(torch.tensor(self.std).view(1, -1, 1, 1))
        return {"images": images.contiguous(), "labels": torch.from_numpy(self._labels(rows))}

    def _labels(self, rows: Dataset) -> NDArray[np.int64]:
        return classes(column(rows, self.label_column, "label_column"), self.label_column)

    def _check_channels(self, channels: int) -> None:
        for option, values in (("mean", self.mean), ("std", self.std)):
            if values and len(values) not in (1, channels):
                raise DataError(
                    f"'{option}' has {len(values)} numbers, and the images {channels} channels",
                    key=("task", option),
                    hint="Give one number for each channel",
                )

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross entropy."""
        return cross_entropy(_logits(model, batch), batch["labels"])

    def totals(self, model: nn.Module, batch: Batch) -> Totals:
        """Summed cross entropy, correct answers, rows."""
        logits = _logits(model, batch)
        return classification_totals(logits, batch["labels"])

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Accuracy and mean cross entropy."""
        return classification_metrics(totals)


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    output = model(batch["images"])
    logits: Tensor = getattr(output, "logits", output)
    return logits


def _is_8_bit(feature: Any) -> bool:
    """Whether a column holds 8-bit pixels; NumPy formatting hides it, the feature does not."""
    inner = getattr(feature, "feature", None)
    if inner is not None:
        return _is_8_bit(inner)
    return getattr(feature, "dtype", "") in ("uint8", "PIL.Image.Image")


def _to_tensor(images: Any, name: str) -> Tensor:
    """Images as float32 (rows, channels, height, width), in memory of their own."""
    try:
        if not isinstance(images, np.ndarray) or images.dtype == object:
            images = np.stack([np.asarray(x, dtype=np.float32) for x in images])
        tensor = torch.from_numpy(images.astype(np.float32))
    except (TypeError, ValueError) as error:
        raise _no_images(name, str(error)) from None
    if tensor.ndim not in (3, 4):
        raise _no_images(name, f"its values have {tensor.ndim - 1} dimensions")
    if tensor.ndim == 3:
        return tensor.unsqueeze(1)
    if tensor.shape[-1] in (1, 3, 4) and tensor.shape[1] not in (1, 3, 4):
        return tensor.permute(0, 3, 1, 2)
    return tensor


def _no_images(name: str, why: str) -> DataError:
    return DataError(
        f"the column '{name}' holds no images of one size: {why}",
        key=("task", "image_column"),
        allowed="PIL images, or arrays HxW, HxWxC or CxHxW",
    )
