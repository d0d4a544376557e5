"""The contract of a client-side method: what one simulated client does with what it received."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from fedsim.arrays import Arrays
from fedsim.errors import ClientError, PluginError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from fedsim.cost import Tally
    from fedsim.task import Batch, Task

Step = dict[str, int | float | None]
"""One line of steps.jsonl."""
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
        tally: Counts the batches, where the scenario has devices.
        rows_at_once: Rows that the device can hold in a batch; None for any number.
        steps: What ``log_step`` noted; None where the scenario does not ask for it.
    """

    id: int
    round: int
    num_rounds: int
    task: Task
    received: Arrays
    config: Mapping[str, Any]
    state: Arrays
    generator: torch.Generator
    tally: Tally | None = None
    rows_at_once: int | None = None
    steps: list[Step] | None = None

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
        """Mean training loss of a batch, with gradient; counted as work of the device."""
        if self.tally is not None:
            self.tally.note(batch)
        return self.task.loss(batch)

    def count(self, flops: int) -> None:
        """Note work of the device beside its batches, such as moving along a direction."""
        if self.tally is not None:
            self.tally.flops += flops

    def log_step(self, number: int, /, **values: int | float | None) -> None:
        """Note a local step for steps.jsonl, where the scenario says ``log_steps: true``.

        Args:
            number: Of the step, from 1; several lines of a step have the same.
            **values: What was found, such as ``loss``; None where the step has no such value.

        Raises:
            ClientError: A value is no number, or has a name that every line has.
        """
        if self.steps is None:
            return
        place: Step = {"round": self.round, "client": self.id, "step": number}
        numbers = all(isinstance(value, int | float | None) for value in (number, *values.values()))
        if not numbers or place.keys() & values.keys():
            raise ClientError(
                f"log_step was given {number!r:.80} and {values!r:.80}",
                hint=f"Give it int, float or None, under other names than {', '.join(place)}",
            )
        self.steps.append(place | values)

    def pieces(self, batch: Batch) -> Iterator[tuple[Batch, float]]:
        """The batch in pieces that the device can hold, each with its part of the rows.

        Gradients of ``part * loss(piece)``, added up, are the gradient of the batch's mean loss.
        """
        rows = next(iter(batch.values())).shape[0]
        size = self.rows_at_once or rows
        if size >= rows:
            yield batch, 1.0
            return
        for start in range(0, rows, size):
            piece = self.task.rows(batch, slice(start, min(start + size, rows)))
            yield piece, next(iter(piece.values())).shape[0] / rows

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
    heeds: ClassVar[tuple[str, ...]] = ()
    """Keys of ``client.config`` that it goes by; what a strategy ``tells`` must be among them."""
    needs_state: ClassVar[bool] = False
    """Whether ``client.state`` is used; it is then stored between rounds."""
    backward: ClassVar[bool] = True
    """Whether training needs gradients; without them a device keeps no activations."""
    accumulates: ClassVar[bool] = False
    """Whether ``train`` splits batches by ``client.pieces`` for devices with little memory."""

    def rehearse(self, client: Client) -> None:  # noqa: B027  (doing nothing is allowed)
        """Note in ``client.tally`` the batches that ``train`` is going to use, or fewer.

        Asynchronous runs learn from it how early an answer may come, and let clients train ahead
        side by side. A method that notes nothing is still correct, but trains one by one.
        """

    def copies(self) -> int:
        """Copies of the trained values that a device keeps beside the model: the received ones."""
        return 1

    def optimizer_bytes(self, parameters: Sequence[nn.Parameter]) -> int:
        """Memory of the optimizer's state on the device."""
        return 0

    trains_blocks: ClassVar[bool] = False
    """Whether the engine calls ``train_many``; such a method has no private state."""
    block_size: int = 1
    """Clients in a block, at least, of a method that trains blocks."""

    @abstractmethod
    def train(self, client: Client) -> Update:
        """Train on the client's data, starting from the received weights already in the model."""

    def train_many(self, clients: Sequence[Client]) -> list[Update]:
        """Train all clients of a block at once; same order.

        Blocks depend on the cohort alone, so what the answer of a client owes to its company is
        the same for any number of workers.
        """
        return [self.train(client) for client in clients]

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
        raise PluginError(
            f"{type(self).__name__} receives weights, and the strategy sends something else",
            key=("client",),
            hint="Write `receive`, or take a strategy that sends weights",
        )

    def checked(self, update: Update, received: Arrays) -> Update:
        """The update, unless it is of an own kind and must not reach the server.

        Raises:
            ClientError: A value is out of range.
        """
        return update

    def summand(self, arrays: Arrays, received: Arrays) -> Arrays:
        """An update of an own kind as arrays of fixed shapes, whose weighted mean has a meaning."""
        return arrays
