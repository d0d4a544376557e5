"""Ferret's client: first-order local steps; sends random projections of what they changed.

    w    <- the global model;  local steps as for ``sgd``
    D_l   = w_received - w, for each block l of tensors
    K_l   = max(2, floor(K |D_l| / max |D|)), K_l vectors v_k chosen at random
    sends gamma_k = <D_l, v_k>

Y. Shu et al., "Ferret: Federated Full-Parameter Tuning at Scale for Large Language Models", ICML
2025, https://arxiv.org/abs/2409.06277. Basis and K come with the message of the strategy
``ferret``. The paper sends indices; ``derived`` ones cost eight bytes together and are ours.
Gradients are clipped before each step, not at every micro-batch as in the published code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.arrays import Arrays, norm
from fedsim.client import Client, Update
from fedsim.clients.sgd import SGD
from fedsim.directions import ADD_FLOPS
from fedsim.errors import ClientError, RunError
from fedsim.projection import (
    COEFFICIENTS,
    COORDINATES,
    COUNTS,
    INDICES,
    ORIGIN,
    PLACES,
    SIZES,
    Basis,
    allocate,
    choose,
    coefficients,
    cut,
    unit,
    unpack_steps,
)
from fedsim.seedpool import unsigned
from fedsim.task import Task


@dataclass(kw_only=True)
class Ferret(SGD):
    """Local training, sent as a few coordinates; the other options are those of ``sgd``.

    Args:
        indices: Tell which vectors were used by one seed (``derived``), or one by one (``sent``).
        coordinates: Type of the numbers that travel; ``float16`` ones are divided by sqrt(rho_l),
            so that a large block's do not vanish.
        equal_weight: Count every client alike instead of by its rows.
    """

    sends: ClassVar[str] = "projection"

    indices: Literal["derived", "sent"] = "derived"
    coordinates: Literal["float32", "float16"] = "float32"
    equal_weight: bool = False

    def train(self, client: Client) -> Update:
        """Train as ``sgd`` does, then project block by block."""
        if odd := client.task.trainable().keys() - client.parameters.keys():
            raise ClientError(
                f"running statistics such as {min(odd)} change without a gradient",
                hint="Ferret projects parameters; use a model with layer or group norm",
            )
        basis = Basis.of(client.received)
        client.count(ADD_FLOPS * _replayed(client.received))
        update = super().train(replace(client, received=client.task.trainable()))
        descent = {name: -x for name, x in update.arrays.items()}
        weight = 1 if self.equal_weight else update.num_examples
        return Update(self._project(client, basis, descent), weight, update.metrics)

    def receive(
        self, task: Task, received: Arrays, start: Arrays, weights: Arrays | None
    ) -> Arrays:
        """The server's weights; a real client subtracts the message's steps from its own copy.

        Raises:
            RunError: The weights are not at hand.
        """
        Basis.of(received)
        if weights is None:
            raise RunError("a Ferret client needs the model it had before")
        return weights

    def checked(self, update: Update, received: Arrays) -> Update:
        """Refuse coordinates that do not fit the basis."""
        sizes = received[SIZES].tolist()
        coefficients(update.arrays, Basis.of(received), sizes)
        return update

    def summand(self, arrays: Arrays, received: Arrays) -> Arrays:
        """One scaled coefficient for each block and vector."""
        sizes = received[SIZES].tolist()
        return {COEFFICIENTS: coefficients(arrays, Basis.of(received), sizes)}

    def _project(self, client: Client, basis: Basis, descent: Arrays) -> Arrays:
        blocks = [{name: descent[name] for name in names} for names in cut(descent)]
        norms = [norm(block) for block in blocks]
        if not np.isfinite(norms).all():
            raise ClientError("the update holds NaN or infinity", hint="Try a lower learning rate")
        counts = allocate(norms, basis.size)
        origin = int(torch.randint(2**62, (), generator=client.generator).item())
        client.count(ADD_FLOPS * int(np.dot(counts, client.received[SIZES])))
        chosen = [choose(origin, i, n, basis.size) for i, n in enumerate(counts)]
        pairs = enumerate(zip(blocks, chosen, strict=True))
        place = client.task.placed
        found = [basis.project(place(block), i, c.tolist()) for i, (block, c) in pairs]
        units = [unit(np.dtype(self.coordinates), n) for n in client.received[SIZES].tolist()]
        scaled = [gamma / u for gamma, u in zip(found, units, strict=True)]
        return {
            COUNTS: unsigned(counts, basis.size + 1),
            COORDINATES: np.concatenate(scaled).astype(self.coordinates),
            **self._names(origin, chosen, basis),
        }

    def _names(self, origin: int, chosen: list[NDArray[np.intp]], basis: Basis) -> Arrays:
        if self.indices == "derived":
            return {ORIGIN: np.array([origin], np.uint64)}
        return {INDICES: unsigned(np.concatenate(chosen), basis.size)}


def _replayed(received: Arrays) -> int:
    """Values that are added to bring the model up to date; none where weights travel."""
    if PLACES not in received:
        return 0
    sizes = received[SIZES]
    step = unpack_steps(received, len(sizes), Basis.of(received).size)
    return int(np.count_nonzero(step.coefficients, axis=(0, 2)) @ sizes)
