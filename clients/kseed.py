"""FedKSeed's client: zeroth-order steps along directions of a shared pool; sends seeds and scalars.

    w <- w0 - eta sum_k G_k z_k
    repeat local_steps times, with a fresh batch and k drawn from the pool:
        g = [L(w + eps z_k) - L(w - eps z_k)] / (2 eps)
        w <- w - eta g z_k
    sends the pairs (k, g)

Z. Qin et al., "Federated Full-Parameter Tuning of Billion-Sized Language Models with Communication
Cost under 18 Kilobytes", ICML 2024, https://arxiv.org/abs/2312.06353. Pool, step size and kind of
directions come with the message of the strategy ``fedkseed``. As published, steps are dropped, not
clipped, where the two losses differ by more than ``loss_clip`` or one is NaN; ``eps`` is larger
than the published 5e-4, which was for float16. ``exact`` is ours. PEFT's CPT projects its
parameters in place during a forward pass, so the server's replay does not match clients' walks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import PositiveFloat, PositiveInt

from fedsim.arrays import Arrays
from fedsim.client import Client, ClientMethod, Update
from fedsim.clients._zeroth import Log, Walker, forward_only, slope
from fedsim.directions import ADD_FLOPS
from fedsim.seedpool import (
    ACCUMULATORS,
    CHANGED,
    DRAWS,
    PROBABILITIES,
    SCALARS,
    SEEDS,
    SeedPool,
    fingerprint,
    unsigned,
)
from fedsim.task import Task


@dataclass(kw_only=True)
class KSeed(ClientMethod):
    """Zeroth-order steps along shared directions; a few bytes for each step.

    Args:
        local_steps: Steps in a round.
        batch_size: Rows in a batch.
        eps: Length of a probe.
        loss_clip: Drop steps whose two losses differ by more than this.
        equal_weight: Count every client alike instead of by its rows.
        exact: Keep a copy of the parameters, so that probes leave no rounding behind.
    """

    sends: ClassVar[str] = "seeds"
    backward: ClassVar[bool] = False

    local_steps: PositiveInt = 200
    batch_size: PositiveInt = 16
    eps: PositiveFloat = 1e-3
    loss_clip: PositiveFloat | None = None
    equal_weight: bool = False
    exact: bool = False

    def train(self, client: Client) -> Update:
        """Run the local steps and send what was found along which seed."""
        pool = SeedPool.of(client.received)
        chosen = self._choices(client, pool)
        pairs: list[tuple[int, float]] = []
        log = Log(client)
        with forward_only(client):
            walker = Walker(client, pool.kind, self.eps, self.exact)
            batches = client.batches(self.batch_size, steps=self.local_steps)
            for step, (k, batch) in enumerate(zip(chosen, batches, strict=True), start=1):
                losses = walker.probe(batch, pool.seeds[k])
                g = slope(losses, self.eps, self.loss_clip)
                log.add(step, pool.seeds[k], losses, g)
                if g is not None:
                    walker.move({pool.seeds[k]: -pool.eta * float(np.float32(g))})
                    pairs.append((int(k), g))
            walker.settle()
        sent = client.received[ACCUMULATORS]
        replayed = len(sent) if CHANGED in client.received else int(np.count_nonzero(sent))
        client.count(ADD_FLOPS * walker.directions.size * replayed)
        metrics = {**log.metrics, "replayed_seeds": float(replayed)}
        weight = 1 if self.equal_weight else client.num_examples
        arrays = self._packed(pairs, pool, PROBABILITIES not in client.received)
        return Update(arrays, weight, metrics)

    def copies(self) -> int:
        """None: scalars are the update; with ``exact``, the values that a probe returns to."""
        return 1 if self.exact else 0

    def receive(
        self, task: Task, received: Arrays, start: Arrays, weights: Arrays | None
    ) -> Arrays:
        """Replay the accumulators on the initial weights, unless the server's result is at hand.

        Raises:
            RunError: The message belongs to another run, or to other directions.
        """
        pool = SeedPool.of(received)
        initial = {name: start[name] for name in task.parameters}
        pool.check_start(fingerprint(initial))
        if weights is not None:
            return weights
        rebuilt = task.placed({name: x.copy() for name, x in initial.items()})
        pool.move(rebuilt, pool.accumulators(received), torch.get_num_threads())
        return {**start, **task.fetched(rebuilt)}

    def checked(self, update: Update, received: Arrays) -> Update:
        """Refuse seeds outside the pool and sums that float32 cannot hold."""
        SeedPool.of(received).dense(update.arrays)
        return update

    def summand(self, arrays: Arrays, received: Arrays) -> Arrays:
        """The sum of scalars for each seed, and how often it was drawn."""
        pool = SeedPool.of(received)
        return {ACCUMULATORS: pool.dense(arrays), DRAWS: pool.draws(arrays)}

    def _choices(self, client: Client, pool: SeedPool) -> NDArray[np.intp]:
        """Positions in the pool, with replacement: uniform, or by the server's probabilities."""
        draws = torch.rand(self.local_steps, generator=client.generator, dtype=torch.float64)
        if PROBABILITIES in client.received:
            steps = np.cumsum(client.received[PROBABILITIES].astype(np.float64))
        else:
            steps = np.arange(1.0, pool.size + 1)
        found = np.searchsorted(steps, draws.numpy() * steps[-1], side="right")
        chosen: NDArray[np.intp] = np.minimum(found, pool.size - 1)
        return chosen

    def _packed(self, pairs: list[tuple[int, float]], pool: SeedPool, sums: bool) -> Arrays:
        """The pairs, or, where only sums count and take fewer bytes, one sum for each seed."""
        seeds, scalars = [k for k, _ in pairs], [g for _, g in pairs]
        arrays = {
            SEEDS: unsigned(seeds, pool.size),
            SCALARS: np.asarray(scalars, np.float32),
        }
        bits = max(1, (pool.size - 1).bit_length())
        if sums and len(pairs) * (32 + bits) > 32 * pool.size:
            return {ACCUMULATORS: pool.dense(arrays).astype(np.float32)}
        return arrays
