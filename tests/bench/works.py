"""What is measured: works, and their data, drawn from seeds and equal for every peer.

Imported by peers in other environments, and before a start-up is timed, hence NumPy only; fedsim's
scenarios reach the data here as ``module:function``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
