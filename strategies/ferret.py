"""Ferret: clients send random projections of their updates; the server sums and rebuilds.

    c_{k,l} = sum_j p_j gamma^j_{k,l} / (rho_l K^j_l)
    w_l    <- w_l - server_learning_rate * sum_k c_{k,l} v_{k,l}

Y. Shu et al., "Ferret: Federated Full-Parameter Tuning at Scale for Large Language Models", ICML
2025, https://arxiv.org/abs/2409.06277. ``scale: paper`` is unbiased; the published code takes d_l
in place of 1 / rho_l, a third, and makes up for it with server_learning_rate 10. That code keeps
one set of bases for the ``run``; new ones each ``round`` do not confine the model to K dimensions,
and new ones for each ``client`` let the noise average out, for more work and downlink. Steps of
one vector longer than ``max_step_norm`` (of the vector's expected length) are clipped, as in the
code. With bases that clients share, the update is additive. Clients are taken to know w0,
delivered with the app: it costs no bytes, nor does ``warm_start``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from fedsim.arrays import Arrays, norm
from fedsim.catchup import CatchUp
from fedsim.directions import VERSION, truncated_variance
from fedsim.errors import PluginError
from fedsim.projection import (
    COEFFICIENTS,
    SIZES,
    WEIGHTS,
    Basis,
    Scale,
    Step,
    coefficients,
    cut,
    pack_steps,
)
from fedsim.seedpool import check_version
from fedsim.strategy import DELTA, NUM_EXAMPLES, DeltaStrategy, State, to_arrays


@dataclass(kw_only=True)
class Ferret(DeltaStrategy):
    """Sums of projected updates; takes clients ``ferret``.

    Args:
        num_bases: Vectors for the block whose update is largest, K.
        server_learning_rate: Step along the mean update; 0 keeps the model.
        anneal: How the server's rate falls until ``anneal_rounds``.
        final_server_learning_rate: Where it ends.
        anneal_rounds: Rounds of the run, for a rate that falls.
        server_momentum: Share of the previous coefficients that is kept; for bases of the ``run``.
        scale: Unbiased as in the ``paper``, or a third of it as in the ``code``.
        bases: How long vectors are kept, or whether each client has its own.
        max_step_norm: Longest step along one vector in one block.
        synchronise: What a client receives: the ``coefficients`` of the rounds it missed, or the
            ``weights`` where these are fewer bytes; or always the ``weights``.
    """

    accepts: ClassVar[tuple[str, ...]] = ("projection",)

    num_bases: PositiveInt = 256
    server_learning_rate: NonNegativeFloat = 1.0
    anneal: Literal["none", "linear", "cosine"] = "none"
    final_server_learning_rate: NonNegativeFloat = 0.0
    anneal_rounds: PositiveInt | None = None
    server_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    scale: Scale = "paper"
    bases: Literal["run", "round", "client"] = "round"
    max_step_norm: PositiveFloat = 10.0
    synchronise: Literal["coefficients", "weights"] = "coefficients"
    _replies: list[Any] = field(init=False, repr=False, default_factory=list)
    _round: int = field(init=False, repr=False, default=0)

    def __post_init__(self) -> None:
        if self.anneal != "none" and self.anneal_rounds is None:
            raise PluginError(
                f"anneal: {self.anneal} needs anneal_rounds", key=("strategy", "anneal")
            )
        if self.server_momentum and self.bases != "run":
            raise PluginError(
                "momentum adds coefficients of equal vectors, and these change every round",
                key=("strategy", "server_momentum"),
                hint="Set bases: run",
            )

    @property
    def additive(self) -> bool:  # type: ignore[override]
        """Whether clients share their vectors, so that coefficients can be summed."""
        return self.bases != "client"

    def broadcasts(self, server_round: int, nodes: Sequence[int]) -> Mapping[int, Arrays]:
        """The basis, and what brings each client's model up to date.

        Raises:
            RunError: The state comes from a run with other directions.
        """
        check_version(self.state.setdefault("version", VERSION))
        self._round = server_round
        updates = int(self.state.get("updates", 0))
        since = CatchUp(self.state).since(nodes, updates)
        behind = {node: updates - update for node, update in since.items()}
        news = {n: self._news(n) for n in sorted(set(behind.values()))}
        messages: dict[tuple[int, int], Arrays] = {}
        for node, n in behind.items():
            seed = self._seed(node)
            if (seed, n) not in messages:
                basis = Basis(seed, self.num_bases, self.scale).message()
                messages[seed, n] = {**basis, SIZES: self._sizes(), **news[n]}
        return {node: messages[self._seed(node), n] for node, n in behind.items()}

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Sum coefficients; those of clients with own bases are kept apart."""
        self._replies.clear()
        answered = CatchUp(self.state).answered(replies)
        return super().aggregate_train(server_round, self._noted(answered))

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Average scores; note who answered."""
        return super().aggregate_evaluate(server_round, CatchUp(self.state).answered(replies))

    def server_update(self, weights: Arrays, delta: Arrays, state: State) -> Arrays:
        """One step along the sum of vectors."""
        if self.bases == "client" and self._replies:
            total = sum(weight for _, weight, _ in self._replies)
            found = [(self._seed(n), c * (w / total)) for n, w, c in self._replies]
        else:
            found = [(self._seed(0), delta[COEFFICIENTS])]
        self._replies.clear()
        table = np.stack([c for _, c in found])
        if self.server_momentum:
            table = table + self.server_momentum * state.get("momentum", np.zeros_like(table))
            state["momentum"] = table
            self.note(momentum_norm=norm({COEFFICIENTS: table}))
        step = Step(tuple(seed for seed, _ in found), self._clipped(self.rate() * table))
        moved = {name: weights[name].copy() for block in self._blocks() for name in block}
        step.apply(moved, self._blocks(), os.cpu_count() or 1)
        self._remember(step, state)
        return {**weights, **moved}

    def rate(self) -> float:
        """The server's learning rate in this round."""
        first, last = self.server_learning_rate, self.final_server_learning_rate
        done = min(1.0, (max(1, self._round) - 1) / (self.anneal_rounds or 1))
        fall = {"none": 0.0, "linear": done, "cosine": (1 - math.cos(math.pi * done)) / 2}
        return first + fall[self.anneal] * (last - first)

    def _noted(self, replies: Iterable[Message]) -> Iterable[Message]:
        for reply in replies:
            if not reply.has_error() and self.bases == "client":
                node = reply.metadata.src_node_id
                numbers = next(iter(reply.content.metric_records.values()))
                weight = float(numbers[NUM_EXAMPLES])  # type: ignore[arg-type]
                found = self._delta(reply.content)[COEFFICIENTS]
                self._replies.append((node, weight, found))
            yield reply

    def _delta(self, content: RecordDict) -> Arrays:
        records = content.array_records
        update = to_arrays(records[DELTA] if DELTA in records else next(iter(records.values())))
        if COEFFICIENTS in update:
            return update
        basis = Basis(0, self.num_bases, self.scale)
        return {COEFFICIENTS: coefficients(update, basis, self._sizes().tolist())}

    def _clipped(self, table: NDArray[np.float64]) -> NDArray[np.float32]:
        """No vector moves a block by more than ``max_step_norm``."""
        lengths = [math.sqrt(n * truncated_variance(n)) for n in self._sizes().tolist()]
        limits = self.max_step_norm / np.array(lengths)[None, :, None]
        result: NDArray[np.float32] = np.clip(table, -limits, limits).astype(np.float32)
        return result

    def _news(self, behind: int) -> Arrays:
        """The last steps, or the weights where they are shorter or steps were forgotten."""
        history: list[Any] = self.state.get("history", [])
        size = sum(x.size for x in self._parameters().values())
        if self.synchronise == "coefficients" and behind <= len(history):
            last = history[len(history) - behind :]
            steps = [Step(tuple(seeds), table) for seeds, table in last]
            message = pack_steps(steps)
            if sum(x.nbytes for x in message.values()) < 4 * size:
                return message
        flat = [x.ravel() for x in self._parameters().values()]
        return {WEIGHTS: np.concatenate(flat).astype(np.float32)}

    def _remember(self, step: Step, state: State) -> None:
        """Keep steps while sending all of them is cheaper than sending the weights."""
        history = [*state.get("history", []), [list(step.seeds), step.coefficients]]
        values = [int(np.count_nonzero(table)) for _, table in history]
        size = sum(x.size for x in self._parameters().values())
        while history and sum(values) > size:
            history.pop(0)
            values.pop(0)
        state["history"], state["updates"] = history, state.get("updates", 0) + 1

    def _seed(self, node: int) -> int:
        name: tuple[int, ...] = {
            "run": (),
            "round": (self._round,),
            "client": (self._round, node),
        }[self.bases]
        return self.seeds.integer("basis", *name)

    def _parameters(self) -> Arrays:
        """The parameters' present values."""
        names = self._weights if self.initial is None else self.initial()
        return {name: self._weights[name] for name in names}

    def _blocks(self) -> list[list[str]]:
        return cut(self._parameters())

    def _sizes(self) -> NDArray[Any]:
        parameters = self._parameters()
        sizes = [sum(parameters[name].size for name in block) for block in cut(parameters)]
        return np.array(sizes, np.uint64)
