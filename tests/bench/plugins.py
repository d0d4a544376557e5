"""fedsim plug-ins of the benchmark: token ids as they are, and a client that does nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from fedsim.client import Client, ClientMethod, Update
from fedsim.models import load
from fedsim.scenario import ModelSection
from fedsim.task import Batch
from fedsim.tasks._columns import column
from fedsim.tasks.text_classification import TextClassification

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(kw_only=True)
class TokenClassification(TextClassification):
    """Text classification whose rows hold token ids; everything else is the shipped task."""

    def build_model(self, section: ModelSection, train: Dataset) -> nn.Module:
        """A classifier of as many labels as the data has."""
        labels = train.features["label"].num_classes
        return load.build(section, "AutoModelForSequenceClassification", num_labels=labels)

    def encode(self, rows: Dataset) -> Batch:
        """No tokenizer, no padding."""
        ids = torch.from_numpy(np.asarray(column(rows, "input_ids", "text_column")))
        labels = torch.tensor(rows["label"][:])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


class Nothing(ClientMethod):
    """Answers with zeros at once."""

    def train(self, client: Client) -> Update:
        """No step at all."""
        zeros = {name: np.zeros_like(x) for name, x in client.received.items()}
        return Update(zeros, client.num_examples, {"train_loss": 0.0})
