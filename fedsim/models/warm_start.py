"""The warm start: training on a public part of the data, on the server, before round 1.

It stands for the pretrained model that federated fine-tuning starts from, where no download is
possible. The result is cached by content hash, so it costs time once per machine.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from fedsim.cache import cached_file
from fedsim.errors import ModelError, did_you_mean
from fedsim.scenario import Scenario, WarmStartSection
from fedsim.seeds import Seeds

if TYPE_CHECKING:
    from fedsim.data.partition import Split
    from fedsim.task import Batch, Objective

log = logging.getLogger("fedsim")


def apply(
    model: nn.Module, objective: Objective, scenario: Scenario, split: Split, seeds: Seeds
) -> None:
    """Train ``model`` in place on the public rows, or load the same result from the cache."""
    from safetensors.torch import load_model, save_model

    section = scenario.model.warm_start
    assert section is not None
    data = objective.encode(split.public)

    def train_and_save(path: Path) -> None:
        train(model, objective, data, section, seeds.torch("warm_start"))
        save_model(model, str(path))

    digest = content_digest(model, data, section, seeds.integer("warm_start"))
    load_model(model, cached_file("warm_start", digest, ".safetensors", train_and_save))


def train(
    model: nn.Module,
    objective: Objective,
    data: Batch,
    section: WarmStartSection,
    generator: torch.Generator,
) -> None:
    """Ordinary centralised training of all parameters."""
    optimizer = optimizer_class(section)(model.parameters(), lr=section.learning_rate)  # type: ignore[call-arg]
    rows = next(iter(data.values())).shape[0]
    model.train()
    for epoch in range(section.epochs):
        order = torch.randperm(rows, generator=generator)
        for index in order.split(section.batch_size):  # type: ignore[no-untyped-call]
            optimizer.zero_grad()
            loss = objective.loss(model, objective.collate(data, index))
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        log.info("warm start: epoch %d of %d, loss %.3f", epoch + 1, section.epochs, loss.item())


def optimizer_class(section: WarmStartSection) -> type[torch.optim.Optimizer]:
    """The class in ``torch.optim`` that a section names.

    Raises:
        ModelError: There is none.
    """
    others = ("Optimizer", "LBFGS", "SparseAdam")
    names = [n for n in torch.optim.__all__ if n[0].isupper() and n not in others]
    if section.optimizer not in names:
        raise ModelError(
            f"torch.optim has no optimizer '{section.optimizer}'",
            key=("model", "warm_start", "optimizer"),
            hint=did_you_mean(section.optimizer, names),
            allowed=f"Known: {', '.join(names)}",
        )
    return getattr(torch.optim, section.optimizer)  # type: ignore[no-any-return]


def content_digest(model: nn.Module, data: Batch, section: WarmStartSection, seed: int) -> str:
    """Hex digest of everything that decides the result: start, rows, settings, torch version."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in (*model.state_dict().items(), *data.items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    digest.update(f"{section.model_dump_json()} {seed} {torch.__version__}".encode())
    return digest.hexdigest()
