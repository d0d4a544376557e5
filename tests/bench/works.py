"""What is measured: data and models, drawn from seeds and equal for every peer.

Imported by peers in other environments, hence torch and NumPy only; fedsim's scenarios reach data
and models here as ``module:function``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

Batch = dict[str, Tensor]
SEED = 7
WARM_UP = 2
"""Rounds that come first and are left out: they build, cache and warm up."""


@dataclass(frozen=True)
class Work:
    """One thing to do.

    Attributes:
        shape: Of an image; token works have ``(tokens,)``.
        classes: Labels.
        vocabulary: Token ids of a token work.
        noise: Images are a part of their class's pattern and this many parts of noise.
        rounds: Timed rounds.
        trains: False for clients that return zeros at once.
    """

    name: str
    title: str
    num_clients: int
    rows: int
    cohort: int
    batch_size: int
    learning_rate: float
    rounds: int
    shape: tuple[int, ...]
    classes: int = 10
    vocabulary: int = 0
    noise: int = 15
    trains: bool = True

    @property
    def threads_help(self) -> bool:
        """Whether a step is large enough to gain from several threads."""
        return self.name not in ("logistic", "nothing")

    @property
    def steps(self) -> int:
        """Local steps in a round."""
        return self.cohort * -(-self.rows // self.batch_size) if self.trains else 0


WORKS = {
    work.name: work
    for work in (
        Work("cnn", "CNN, all 1.6 M weights", 1000, 50, 50, 10, 0.1, 6, (3, 32, 32), noise=2),
        Work("lora_bert", "LoRA on BERT 4 x 128", 200, 40, 20, 8, 0.2, 6, (64,), 2, 1000),
        Work("lora_minilm", "LoRA on BERT 6 x 384", 20, 16, 4, 8, 0.03, 16, (64,), 2, 30522),
        Work("logistic", "logistic regression", 1000, 60, 10, 10, 0.1, 30, (28, 28)),
        Work("nothing", "clients that do nothing", 100, 1, 100, 1, 0.1, 10, (28, 28), trains=False),
    )
}
LORA = {"r": 8, "target_modules": ["query", "value"]}
BERTS: dict[str, dict[str, Any]] = {
    name: {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "vocab_size": WORKS[name].vocabulary,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    for name, layers, width, heads in (("lora_bert", 4, 128, 4), ("lora_minilm", 6, 384, 12))
}


# Models


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


# Data


@cache
def rows(name: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """All training rows of a work: inputs and labels, client after client."""
    work = WORKS[name]
    rng = np.random.default_rng(SEED)
    # Without an order: a peer that does not shuffle would get batches of one row a class.
    labels = rng.permutation(np.arange(work.num_clients * work.rows) % work.classes)
    make = _tokens if work.vocabulary else _images
    return make(work, labels, rng), labels


def _images(work: Work, labels: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.uint8]:
    size = (len(labels), *work.shape)
    noise = np.frombuffer(rng.bytes(int(np.prod(size))), dtype=np.uint8).reshape(size)
    patterns = np.frombuffer(rng.bytes(int(np.prod(size[1:])) * work.classes), dtype=np.uint8)
    patterns = patterns.reshape(work.classes, *work.shape) // (work.noise + 1)
    return noise - noise // (work.noise + 1) + patterns[labels]


def _tokens(work: Work, labels: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    size = (len(labels), *work.shape)
    tokens = rng.integers(1, work.vocabulary, size)
    telling = 1 + rng.integers(0, 20, size) + 20 * labels[:, None]  # 20 words of each class
    return np.where(rng.random(size) < 0.8, telling, tokens)


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


def dataset(work: str) -> dict[str, Any]:
    """The rows as datasets, for fedsim; the test set is a handful, since tests are not measured."""
    from fedsim.data.embedded import _dataset

    inputs, labels = rows(work)
    names = [str(label) for label in range(WORKS[work].classes)]
    column = "input_ids" if WORKS[work].vocabulary else "image"
    return {
        "train": _dataset(column, inputs, labels, names),
        "test": _dataset(column, inputs[:20], labels[:20], names),
    }


def cohort(work: Work, server_round: int) -> list[int]:
    """The clients of a round."""
    rng = np.random.default_rng([SEED, server_round])
    return [int(i) for i in rng.choice(work.num_clients, work.cohort, replace=False)]
