"""Local SGD for a whole block of clients at once, for models so small that Python is the cost.

    w_k <- w;   for local_epochs (or local_steps):  w_k <- w_k - eta_t * g(w_k; batch_k)
    all w_k of a block in one ``torch.func.vmap``; sends w_k - w

The same method as ``sgd`` with plain SGD: batches are the same, and weights differ from it by
rounding only (batched kernels sum in another order). Clients whose batches have other shapes than
their neighbours' (another number of rows, another text length) are trained one by one. The block,
hence every bit, depends on the cohort alone.

Local method: H. B. McMahan et al., "Communication-Efficient Learning of Deep Networks from
Decentralized Data", AISTATS 2017, https://arxiv.org/abs/1602.05629. Vectorised clients as in FedJAX
(J. H. Ro et al., 2021, https://arxiv.org/abs/2108.02117).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from fedsim.client import Client, Update
from fedsim.clients.sgd import SGD
from fedsim.errors import PluginError
from fedsim.task import Batch, Task

Weights = dict[str, Tensor]


@dataclass(kw_only=True)
class VmapSGD(SGD):
    """Local training of a block of clients in one call; the options are those of ``sgd``.

    Args:
        block_size: Clients trained at once, at least, where the cohort has as many. Larger blocks
            are faster and need more memory; fewer workers can then share a round.
    """

    trains_blocks: ClassVar[bool] = True

    block_size: PositiveInt = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self._is_plain or self.max_grad_norm:
            raise PluginError(
                "vmap_sgd takes plain SGD steps: no other optimizer, option or clipping",
                key=("client", "name"),
                hint="Use 'sgd'",
            )

    def train_many(self, clients: Sequence[Client]) -> list[Update]:
        """Train the block, in one go where all batches have equal shapes."""
        batches = [self._batches(client) for client in clients]
        if len({tuple(_shape(batch) for batch in one) for one in batches}) > 1:
            return super().train_many(clients)
        return self._train_stacked(clients, batches)

    def train(self, client: Client) -> Update:
        """Train one client, as ``sgd`` does."""
        client.task.load(client.received)
        client.generator.manual_seed(client.generator.initial_seed())  # looking at batches drew
        return super().train(client)

    def _batches(self, client: Client) -> list[Batch]:
        return list(client.batches(self.batch_size, self.local_epochs, self.local_steps))

    def _train_stacked(self, clients: Sequence[Client], batches: list[list[Batch]]) -> list[Update]:
        task = clients[0].task
        task.set_training(True)
        rate = self.rate(clients[0].round, clients[0].num_rounds)
        step = vmap(grad_and_value(_Loss(task).of), randomness="different")
        start = {name: p.detach() for name, p in task.parameters.items()}
        weights = {n: p.expand(len(clients), *p.shape).clone() for n, p in start.items()}
        losses = []
        for together in zip(*batches, strict=True):
            stacked = {key: torch.stack([b[key] for b in together]) for key in together[0]}
            gradients, loss = step(weights, stacked)
            weights = {name: w.add(gradients[name], alpha=-rate) for name, w in weights.items()}
            losses.append(loss)
        table = torch.stack(losses)
        means = table.mean(dim=0).tolist()
        for client, its_losses in zip(clients, table.T.tolist(), strict=True):
            for number, its_loss in enumerate(its_losses, start=1):
                client.log_step(number, loss=its_loss)
        delta = task.fetched({name: w - start[name] for name, w in weights.items()})
        return [
            Update({n: x[i] for n, x in delta.items()}, client.num_examples, {"train_loss": mean})
            for i, (client, mean) in enumerate(zip(clients, means, strict=True))
        ]


class _Loss(nn.Module):
    """The task's loss as a function of weights and batch."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model = task.model
        self.task = task

    def forward(self, batch: Batch) -> Tensor:
        return self.task.loss(batch)

    def of(self, weights: Weights, batch: Batch) -> Tensor:
        named = {f"model.{name}": weight for name, weight in weights.items()}
        result: Tensor = functional_call(self, named, (batch,))
        return result


def _shape(batch: Batch) -> tuple[tuple[str, torch.Size], ...]:
    return tuple((name, tensor.shape) for name, tensor in batch.items())
