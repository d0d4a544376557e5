"""What a client does, in plain torch; the bare loop and Flower's client share it."""

from __future__ import annotations

import torch
from torch import nn

from tests.bench import models
from tests.bench.works import Work


class Resident:
    """A model that stays in its process, with its optimizer."""

    def __init__(self, work: Work) -> None:
        torch.set_num_threads(1)
        self.work = work
        self.model = models.build_model(work)
        self.trained = models.trained(self.model)
        self.parameters = list(self.trained.values())
        self.optimizer = torch.optim.SGD(self.parameters, lr=work.learning_rate)

    def reset(self, weights: list[torch.Tensor]) -> None:
        """Copy weights into the model."""
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, weights)

    def train(self, client: int, server_round: int) -> float:
        """One epoch over a client's rows; returns the mean loss."""
        if not self.work.trains:
            return 0.0
        self.model.train()
        data = models.client_rows(self.work.name, client)
        generator = torch.Generator().manual_seed(server_round * 1_000_003 + client)
        order = torch.randperm(self.work.rows, generator=generator)
        losses = [
            self.step({k: x[i] for k, x in data.items()}) for i in order.split(self.work.batch_size)
        ]
        return sum(losses) / len(losses)

    def step(self, batch: models.Batch) -> float:
        """One step of SGD."""
        self.optimizer.zero_grad()
        loss = models.loss(self.model, batch)
        loss.backward()
        self.optimizer.step()
        return loss.item()


def num_trainable(model: nn.Module) -> int:
    """Numbers that are trained and exchanged."""
    return sum(p.numel() for p in models.trained(model).values())
