"""MeZO: local training with forward passes only, at the memory of inference.

    repeat local_steps times, with a fresh seed and batch:
        g = [L(w + eps z) - L(w - eps z)] / (2 eps)
        w <- w - eta (g z + weight_decay w)
    sends w - w_received

S. Malladi et al., "Fine-Tuning Language Models with Just Forward Passes", NeurIPS 2023,
https://arxiv.org/abs/2305.17333: zeroth-order SGD with one direction per step, or the mean over
several (n-SPSA). As in the published code, biases and layer norms do not decay. The paper has no
``loss_clip``, no other ``directions`` than gaussian ones, and returns from probes inexactly
(``exact: false``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from fedsim.client import Client, ClientMethod, Update
from fedsim.clients._zeroth import Log, Walker, draw_seed, forward_only, slope
from fedsim.directions import Kind
from fedsim.task import Batch

UNDECAYED = ("bias", "layer_norm", "layernorm")
"""Parts of names of parameters without weight decay."""


@dataclass(kw_only=True)
class MeZO(ClientMethod):
    """Zeroth-order SGD on whatever is trained: all parameters or any adapter.

    Args:
        learning_rate: Step size. A strategy that sends ``learning-rate`` overrides it.
        eps: Length of a probe; LoRA, whose B starts at 0, needs more than full tuning.
        local_steps: Steps in a round.
        batch_size: Rows in a batch.
        num_directions: Directions whose estimates are averaged in a step.
        weight_decay: Shrinks weights other than biases and layer norms in every step.
        loss_clip: Drop steps whose two losses differ by more than this.
        directions: Distribution of the directions.
        exact: Keep a copy of the parameters, so that probes leave no rounding behind.
    """

    backward: ClassVar[bool] = False
    heeds: ClassVar[tuple[str, ...]] = ("learning-rate",)

    learning_rate: PositiveFloat = 1e-3
    eps: PositiveFloat = 1e-3
    local_steps: PositiveInt = 30
    batch_size: PositiveInt = 16
    num_directions: PositiveInt = 1
    weight_decay: NonNegativeFloat = 0.0
    loss_clip: PositiveFloat | None = None
    directions: Kind = "gaussian"
    exact: bool = False

    def train(self, client: Client) -> Update:
        """Run the local steps and send the difference."""
        log = Log(client)
        with forward_only(client):
            walker = Walker(client, self.directions, self.eps, self.exact)
            for number, batch in enumerate(client.batches(self.batch_size, steps=self.local_steps)):
                self.step(client, walker, batch, number, log)
            walker.settle()
        return client.update(**log.metrics)

    def copies(self) -> int:
        """The received values, and with ``exact`` those that a probe returns to."""
        return 2 if self.exact else 1

    def step(self, client: Client, walker: Walker, batch: Batch, number: int, log: Log) -> None:
        """Probe every direction from the same point, then move along all of them."""
        rate = float(client.config.get("learning-rate", self.learning_rate))
        terms: dict[int, float] = {}
        for which in range(self.num_directions):
            seed = self.seed(client, number * self.num_directions + which)
            losses = walker.probe(batch, seed)
            g = slope(losses, self.eps, self.loss_clip)
            log.add(number + 1, seed, losses, g)
            if g is not None:
                terms[seed] = -rate * g / self.num_directions
        if self.weight_decay:
            walker.settle()
            self._decay(client, 1 - rate * self.weight_decay)
        walker.move(terms)

    def seed(self, client: Client, number: int) -> int:
        """The seed of the ``number``-th direction of this round."""
        return draw_seed(client.generator)

    def _decay(self, client: Client, factor: float) -> None:
        for name, parameter in client.parameters.items():
            if not any(part in name.lower() for part in UNDECAYED):
                parameter.mul_(factor)
