"""Local SGD: each client runs a torch optimizer over its own rows.

    w_k <- w;   for local_epochs (or local_steps):  w_k <- w_k - eta_t * g(w_k; batch)
    sends w_k - w

H. B. McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
AISTATS 2017, https://arxiv.org/abs/1602.05629 (ClientUpdate), with any optimizer of
``torch.optim``. The optimizer starts afresh in every round.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from fedsim.client import Client, ClientMethod, Update
from fedsim.cost import optimizer_bytes
from fedsim.errors import PluginError, did_you_mean
from fedsim.task import Batch

Schedule = Literal["constant", "linear", "cosine"]


@dataclass(kw_only=True)
class SGD(ClientMethod):
    """Local training with a torch optimizer.

    Args:
        learning_rate: Step size in the first round.
        optimizer: Name of a class in ``torch.optim``: SGD, AdamW, Adagrad ...
        optimizer_options: Further arguments of that class, such as ``{momentum: 0.9}``.
        local_epochs: Passes over the client's rows in a round.
        local_steps: Instead of epochs, exactly this many batches.
        max_local_steps: Instead, a number of batches that the client draws anew each time,
            uniformly from 1 to this ("anarchic" clients).
        batch_size: Rows in a batch.
        max_grad_norm: Clip the gradient of each batch to this L2 norm.
        learning_rate_schedule: How the rate falls over the rounds of the run; ``linear`` and
            ``cosine`` end at ``final_learning_rate``.
        final_learning_rate: Rate in the last round of a falling schedule.
    """

    accumulates: ClassVar[bool] = True

    learning_rate: PositiveFloat = 0.1
    optimizer: str = "SGD"
    optimizer_options: dict[str, Any] = field(default_factory=dict)
    local_epochs: PositiveInt = 1
    local_steps: PositiveInt | None = None
    max_local_steps: PositiveInt | None = None
    batch_size: PositiveInt = 16
    max_grad_norm: PositiveFloat | None = None
    learning_rate_schedule: Schedule = "constant"
    final_learning_rate: NonNegativeFloat = 0.0

    def __post_init__(self) -> None:
        if self.local_steps is not None and self.max_local_steps is not None:
            raise PluginError(
                "give local_steps or max_local_steps, never both", key=("client", "max_local_steps")
            )
        self._check_optimizer()
        if self._is_plain:
            return
        try:
            self._make_optimizer([torch.nn.Parameter(torch.zeros(1))], self.learning_rate)
        except (TypeError, ValueError) as error:
            raise PluginError(
                f"torch.optim.{self.optimizer} refuses these options: {error}",
                key=("client", "optimizer_options"),
            ) from None

    def train(self, client: Client) -> Update:
        """Run the local epochs and send the difference."""
        client.task.set_training(True)
        parameters = list(client.parameters.values())
        optimizer = self._make_optimizer(parameters, self.rate(client.round, client.num_rounds))
        losses: list[float] = []
        for step, batch in enumerate(self.batches(client), start=1):
            optimizer.zero_grad()
            losses.append(self._backward(client, batch))
            client.log_step(step, loss=losses[-1])
            if self.max_grad_norm:
                torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
            optimizer.step()
        return client.update(train_loss=sum(losses) / len(losses), local_steps=len(losses))

    def rehearse(self, client: Client) -> None:
        """Every batch once through the model, forward and backward."""
        assert client.tally is not None
        for batch in self.batches(client):
            for piece, _ in client.pieces(batch):
                client.tally.note(piece)

    def batches(self, client: Client) -> Iterator[Batch]:
        """The batches of one training."""
        steps = self.local_steps
        if self.max_local_steps is not None:
            draw = torch.randint(self.max_local_steps, (), generator=client.generator)
            steps = int(draw) + 1
        return client.batches(self.batch_size, self.local_epochs, steps)

    def _backward(self, client: Client, batch: Batch) -> float:
        """Gradient of a batch, in the pieces that the device can hold; returns the loss."""
        total = 0.0
        for piece, part in client.pieces(batch):
            loss = self.loss(client, piece)
            if part < 1:  # a factor of 1 would cost a small model a seventh of its step
                loss = part * loss
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        return total

    def optimizer_bytes(self, parameters: Sequence[torch.nn.Parameter]) -> int:
        """What the optimizer keeps between two steps, as it makes it."""
        if self._is_plain:
            return 0
        copies = [torch.nn.Parameter(p.detach().clone()) for p in parameters]
        return optimizer_bytes(self._make_optimizer(copies, self.learning_rate))

    def loss(self, client: Client, batch: Batch) -> Tensor:
        """The local objective on a batch; methods that change it override this."""
        return client.loss(batch)

    def rate(self, server_round: int, num_rounds: int) -> float:
        """Learning rate of a round, by the schedule."""
        done = (server_round - 1) / max(1, num_rounds - 1)
        fall = {
            "constant": 0.0,
            "linear": done,
            "cosine": (1 - math.cos(math.pi * done)) / 2,
        }[self.learning_rate_schedule]
        return self.learning_rate + fall * (self.final_learning_rate - self.learning_rate)

    @property
    def _is_plain(self) -> bool:
        return self.optimizer == "SGD" and not self.optimizer_options

    def _make_optimizer(self, parameters: list[torch.nn.Parameter], rate: float) -> Any:
        if self._is_plain:
            return PlainSGD(parameters, rate)
        return getattr(torch.optim, self.optimizer)(parameters, lr=rate, **self.optimizer_options)

    def _check_optimizer(self) -> None:
        others = ("Optimizer", "LBFGS", "SparseAdam")
        names = [n for n in torch.optim.__all__ if n[0].isupper() and n not in others]
        if self.optimizer not in names:
            raise PluginError(
                f"torch.optim has no optimizer '{self.optimizer}'",
                key=("client", "optimizer"),
                hint=did_you_mean(self.optimizer, names),
                allowed=f"Known: {', '.join(names)}",
            )
        arguments = inspect.signature(getattr(torch.optim, self.optimizer)).parameters
        takes = [name for name in arguments if name not in ("params", "lr")]
        for name in self.optimizer_options:
            if name not in takes:
                raise PluginError(
                    f"torch.optim.{self.optimizer} has no option '{name}'",
                    key=("client", "optimizer_options", name),
                    hint=did_you_mean(name, takes),
                    allowed=f"Options: {', '.join(takes)}",
                )


class PlainSGD:
    """``torch.optim.SGD`` without options, with the same bits.

    torch's optimizers import its compiler first, 1.7 s in every worker, and take three times as
    long for a step of a small model.
    """

    def __init__(self, parameters: list[torch.nn.Parameter], lr: float) -> None:
        self.parameters, self.lr = parameters, lr

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """One step downhill."""
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.add_(parameter.grad, alpha=-self.lr)
