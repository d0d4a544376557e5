"""The models of the works and their rows as tensors, equal for every peer.

Imported by peers in other environments, hence torch and NumPy only; fedsim's scenarios reach models
here as ``module:function``.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.bench.works import BERTS, LORA, SEED, WORKS, Work, rows

Batch = dict[str, Tensor]


def build_model(work: Work) -> nn.Module:
    """The model with what is trained marked; equal weights in every process."""
    torch.manual_seed(SEED)
    if work.vocabulary:
        return _lora(work)
    return cnn() if work.name == "cnn" else logistic()


def cnn() -> nn.Module:
    """pfl-research's CIFAR10 model."""
    from fedsim.models.cnn import simple_cnn

    return simple_cnn()


def logistic() -> nn.Module:
    """Logistic regression on 28 x 28 images."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


def _lora(work: Work) -> nn.Module:
    import peft
    from transformers import BertConfig, BertForSequenceClassification

    model = BertForSequenceClassification(BertConfig(**BERTS[work.name], num_labels=work.classes))
    adapted: nn.Module = peft.get_peft_model(model, peft.LoraConfig(**LORA, task_type="SEQ_CLS"))
    return adapted


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trained parameters by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross entropy of a batch."""
    inputs = {name: x for name, x in batch.items() if name != "labels"}
    outputs = model(inputs["images"]) if "images" in inputs else model(**inputs).logits
    return functional.cross_entropy(outputs, batch["labels"])


@cache
def client_rows(name: str, client: int) -> Batch:
    """The rows of one client as tensors; made once per process."""
    work = WORKS[name]
    inputs, labels = rows(name)
    own = slice(client * work.rows, (client + 1) * work.rows)
    batch = {"labels": torch.from_numpy(labels[own])}
    if work.vocabulary:
        ids = torch.from_numpy(inputs[own])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **batch}
    images = torch.from_numpy(inputs[own].astype(np.float32)) / 255
    return {"images": images.reshape(work.rows, -1, *work.shape[-2:]) * 4 - 2, **batch}
