"""FedKSeed: the global model is the initial one plus a sum over K seeds; kilobytes travel.

    G_k  <- G_k + sum_c p_c A^c_k            A^c_k: sum of client c's scalars along seed k
    w     = w0 - eta sum_k G_k z(s_k)
    pro:  P = softmax(scaled(mean_k)),  mean_k = (grad_initial + sum |clip(g, +-bias_loss_clip)|)
          / (1 + number of g),  scaled to [0, 1] over the pool

Z. Qin et al., "Federated Full-Parameter Tuning of Billion-Sized Language Models with Communication
Cost under 18 Kilobytes", ICML 2024, https://arxiv.org/abs/2312.06353; with ``pro``, FedKSeed-Pro.
Clients are taken to know w0, delivered with the app: it costs no bytes, nor does ``warm_start``.
Seeds are distinct, unlike in the published code. The update is additive: weighted sums of clients'
accumulators are all it needs (with ``pro``, the single scalars, too). ``missing``, ``replay`` and
other ``directions`` than gaussian ones are ours. The default ``learning_rate`` suits small models;
scale it like one over the number of parameters.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from fedsim.arrays import Arrays
from fedsim.catchup import CatchUp
from fedsim.directions import VERSION, Kind
from fedsim.errors import PluginError, RunError
from fedsim.seedpool import (
    ACCUMULATORS,
    DRAWS,
    PROBABILITIES,
    SCALARS,
    SEEDS,
    SeedPool,
    check_version,
    effective,
    fingerprint,
    finite_in_float32,
    tenths,
)
from fedsim.strategy import DELTA, DeltaStrategy, State, to_arrays


@dataclass(kw_only=True)
class FedKSeed(DeltaStrategy):
    """Seeds and scalars instead of weights; takes clients ``kseed``.

    Args:
        num_seeds: Seeds in the pool, K.
        learning_rate: Step size eta, for clients and for rebuilding; constant over the run.
        directions: Distribution of the directions.
        pro: Draw seeds with larger scalars more often (FedKSeed-Pro).
        bias_loss_clip: Largest scalar that counts for ``pro``.
        grad_initial: First entry of every seed's history for ``pro``.
        synchronise: What a client receives: all ``accumulators``, to replay on the initial model,
            or those that changed since it last took part (``missing``), to replay on a copy of the
            model that it has kept.
        replay: Where the model is computed: on the ``server``, once for all workers (a shortcut of
            the simulation that changes no byte count), or by the ``clients``, from the message.
        rebuild_every: Rounds between computations from the initial model; in the others, the
            server adds what changed. Bounds the drift of float32.
    """

    accepts: ClassVar[tuple[str, ...]] = ("seeds",)

    num_seeds: PositiveInt = 4096
    learning_rate: PositiveFloat = 1e-4
    directions: Kind = "gaussian"
    pro: bool = False
    bias_loss_clip: PositiveFloat = 1000.0
    grad_initial: NonNegativeFloat = 0.0
    synchronise: Literal["accumulators", "missing"] = "accumulators"
    replay: Literal["server", "clients"] = "server"
    rebuild_every: PositiveInt = 10

    def __post_init__(self) -> None:
        if self.replay == "clients" and self.synchronise == "missing":
            raise PluginError(
                "clients that replay what is missing would each keep a copy of the model",
                key=("strategy", "replay"),
                hint="Use replay: server with synchronise: missing; bytes are the same",
            )
        self.shares_weights = self.replay == "server"

    @property
    def additive(self) -> bool:  # type: ignore[override]
        """Whether sums over clients are enough."""
        return not self.pro

    def broadcasts(self, server_round: int, nodes: Sequence[int]) -> Mapping[int, Arrays]:
        """Accumulators, and with ``pro`` the probabilities."""
        pool, total = self._pool(), self._accumulators()
        more = {PROBABILITIES: self.probabilities()} if self.pro else {}
        if self.synchronise == "accumulators":
            message = {**pool.message(total), **more}
            return dict.fromkeys(nodes, message)
        changed = self.state.setdefault("changed", np.zeros(self.num_seeds, np.int64))
        since = CatchUp(self.state).since(nodes, int(self.state.get("updates", 0)))
        messages = {
            r: {**pool.changes(total, np.flatnonzero(changed > r)), **more}
            for r in sorted(set(since.values()))
        }
        return {node: messages[r] for node, r in since.items()}

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Sum what clients found; note who answered."""
        return super().aggregate_train(server_round, CatchUp(self.state).answered(replies))

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Average scores; note who answered."""
        return super().aggregate_evaluate(server_round, CatchUp(self.state).answered(replies))

    def server_update(self, weights: Arrays, delta: Arrays, state: State) -> Arrays:
        """Add the clients' sums to the accumulators, and what changed to the weights.

        Raises:
            RunError: The accumulators outgrow float32.
        """
        pool, before = self._pool(), self._accumulators()
        grown = before.astype(np.float64) + delta[ACCUMULATORS]
        if not finite_in_float32(grown):
            raise RunError(
                "the accumulators outgrow float32",
                hint="Scalars this large belong to a run that diverges; try a lower learning_rate "
                "or the client's loss_clip",
            )
        total = grown.astype(np.float32)
        difference = total.astype(np.float64) - before
        state["accumulators"], state["updates"] = total, state.get("updates", 0) + 1
        self._note_draws(delta[DRAWS], state)
        if "changed" in state:
            state["changed"][difference != 0] = state["updates"]
        initial, threads = self._initial(), os.cpu_count() or 1
        if self.replay == "clients" or state["updates"] % self.rebuild_every == 0:
            return {**weights, **pool.rebuild(initial, total, threads)}
        moved = {name: weights[name].copy() for name in initial}
        pool.move(moved, difference, threads)
        return {**weights, **moved}

    def probabilities(self) -> NDArray[np.float32]:
        """How often each seed should be drawn, from the scalars seen so far."""
        mean = self._history("sums", self.grad_initial) / self._history("counts", 1.0)
        scaled = (mean - mean.min()) / (mean.max() - mean.min() + 1e-10)
        weights = np.exp(scaled)
        result: NDArray[np.float32] = (weights / weights.sum()).astype(np.float32)
        return result

    def sums(self, update: Arrays) -> Arrays:
        """A client's pairs as one sum for each seed; ``pro`` remembers the pairs."""
        if DRAWS in update:  # of a block of clients
            return update
        pool = self._any_pool(start=0)
        result = {ACCUMULATORS: pool.dense(update), DRAWS: pool.draws(update)}
        if self.pro:  # nothing is kept of what is refused above
            self._remember(update)
        return result

    def _delta(self, content: RecordDict) -> Arrays:
        records = content.array_records
        update = to_arrays(records[DELTA] if DELTA in records else next(iter(records.values())))
        return self.sums(update)

    def _remember(self, update: Arrays) -> None:
        """Note the size of every scalar for its seed."""
        if SEEDS not in update:
            raise PluginError("FedKSeed-Pro needs single scalars, not their sums", key=("client",))
        sizes = np.abs(update[SCALARS].astype(np.float64)).clip(max=self.bias_loss_clip)
        seeds = update[SEEDS].astype(np.intp)
        np.add.at(self._history("sums", self.grad_initial), seeds, sizes)
        np.add.at(self._history("counts", 1.0), seeds, 1.0)

    def _note_draws(self, draws: NDArray[np.float64], state: State) -> None:
        """Note how evenly seeds are drawn, in this round and over the run."""
        if self.pro:
            self.note(probable_seeds=effective(self.probabilities()))
        if draws.sum() > 0:  # sums of scalars do not tell
            state["draws"] = state.get("draws", 0.0) + draws
            self.note(drawn_seeds=effective(draws), drawn_tenths=tenths(state["draws"]))

    def _history(self, name: str, first: float) -> NDArray[np.float64]:
        history: NDArray[np.float64] = self.state.setdefault(
            name, np.full(self.num_seeds, abs(first))
        )
        return history

    def _accumulators(self) -> NDArray[np.float32]:
        total: NDArray[np.float32] = self.state.setdefault(
            "accumulators", np.zeros(self.num_seeds, np.float32)
        )
        return total

    def _initial(self) -> Arrays:
        """The parameters that the sums are added to."""
        if self.initial is not None:
            return self.initial()
        initial: Arrays = self.state.setdefault("initial", self._weights)
        return initial

    def _pool(self) -> SeedPool:
        """The pool of this run.

        Raises:
            RunError: The state comes from a run with other initial weights or other directions.
        """
        start = fingerprint(self._initial())
        known = self.state.setdefault("pool", {"start": start, "version": VERSION})
        check_version(known["version"])
        pool = self._any_pool(known["start"])
        pool.check_start(start)
        return pool

    def _any_pool(self, start: int) -> SeedPool:
        master = self.seeds.integer("seed-pool")
        return SeedPool(master, self.num_seeds, self.learning_rate, self.directions, start)
