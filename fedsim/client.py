"""The contract of a client-side method: what one simulated client does with what it received."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from fedsim.arrays import Arrays

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from fedsim.task import Batch, Task

KINDS = ("delta", "sparse", "seeds", "projection", "layers", "tensors")
"""Kinds of update that a client can send and a strategy can accept."""


@dataclass(frozen=True)
class Update:
    """What a client hands over after training.

    Attributes:
        arrays: The update, ``w_client - w_received`` for the kind ``delta``.
        num_examples: Weight of this client in averages.
        metrics: Numbers for the server, such as ``train_loss``.
    """

    arrays: Arrays
    num_examples: int
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Client:
    """One client in one round, as its method sees it.

    The task's model already holds the received weights. Every random draw of the method comes from
    ``generator`` (or torch's global generator, which is seeded alike for dropout).

    Attributes:
        id: Index of the client, 0 to ``num_clients - 1``.
        round: Server round, from 1.
        num_rounds: Rounds of the whole run, for schedules.
        task: The resident task.
        received: What the server sent, after decoding.
        config: The strategy's message configuration (Flower's ``ConfigRecord``).
        state: Private arrays that live from one participation to the next.
        generator: This client's torch generator for this round.
    """

    id: int
    round: int
    num_rounds: int
    task: Task
    received: Arrays
    config: Mapping[str, Any]
    state: Arrays
    generator: torch.Generator

    @cached_property
    def data(self) -> Batch:
        """All training rows of this client, encoded."""
        return self.task.client_data(self.id)

    @cached_property
    def num_examples(self) -> int:
        """Training rows of this client."""
        return self.task.split.num_examples(self.id)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Trained parameters by name."""
        return self.task.parameters

    def batches(
        self, batch_size: int, epochs: int = 1, steps: int | None = None
    ) -> Iterator[Batch]:
        """Minibatches in a fresh random order each epoch.

        Args:
            batch_size: Rows per batch; the last batch of an epoch may be smaller.
            epochs: Passes over the client's rows.
            steps: Instead of epochs, exactly this many batches.
        """
        import torch

        done = 0
        epoch = 0
        while (epoch < epochs) if steps is None else (done < steps):
            order = torch.randperm(self.num_examples, generator=self.generator)
            for index in order.split(batch_size):  # type: ignore[no-untyped-call]
                if steps is not None and done == steps:
                    return
                yield self.task.collate(self.data, index)
                done += 1
            epoch += 1

    def loss(self, batch: Batch) -> Tensor:
        """Mean training loss of a batch, with gradient."""
        return self.task.loss(batch)

    def update(self, **metrics: float) -> Update:
        """The usual answer: current weights minus received ones, weighted by rows."""
        return Update(self.task.difference(self.received), self.num_examples, metrics)


class ClientMethod(ABC):
    """What clients do in a round. One instance serves all clients of a worker: keep no state in it.

    Class attributes declare facts that the engine and the loader use.
    """

    is_plugin: ClassVar[bool] = True
    sends: ClassVar[str] = "delta"
    """Kind of update, one of ``KINDS``; a strategy must accept it."""
    needs_state: ClassVar[bool] = False
    """Whether ``client.state`` is used; it is then stored between rounds."""

    @abstractmethod
    def train(self, client: Client) -> Update:
        """Train on the client's data, starting from the received weights already in the model."""

    def receive(
        self, task: Task, received: Arrays, start: Arrays, weights: Arrays | None
    ) -> Arrays:
        """The model's weights after a message that is not weights; once per message and worker.

        Args:
            task: The resident task, for its layout; its present values mean nothing.
            received: The decoded message.
            start: Initial values of all exchanged arrays.
            weights: What the server knows to be the result, so that a simulation need not compute
                it once per worker; None where the method must.
        """
        raise NotImplementedError(f"{type(self).__name__} receives weights only")

    def checked(self, update: Update, received: Arrays) -> Update:
        """The update, unless it is of an own kind and must not reach the server.

        Raises:
            ClientError: A value is out of range.
        """
        return update

    def summand(self, arrays: Arrays, received: Arrays) -> Arrays:
        """An update of an own kind as arrays of fixed shapes, whose weighted mean has a meaning."""
        return arrays
