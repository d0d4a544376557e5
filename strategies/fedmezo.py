"""FedMeZO: average adapters that clients train without gradients, each at a rate of its own.

    eta_i = learning_rate + spread * q_i,   q_i = (s_i - mean s) / max |s - mean s|  in [-1, 1]
    w    <- w + server_learning_rate * weighted mean of the clients' deltas

Z. Ling et al., "On the Convergence of Zeroth-Order Federated Tuning for Large Language Models", KDD
2024, https://arxiv.org/abs/2402.05926 (proposition 3.7 and the published code). The signal s_i is
the client's last loss (``round-wise``), the mean of its last five from round 6 on (``five-round``),
or the distance of its last update from the mean one, tensor by tensor (``model-diff``, the
paper's best); clients without one, and all while signals are equal, get ``learning_rate``.
``random`` draws the rate, ``frozen`` leaves it. Signals are compared within the cohort.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from pydantic import NonNegativeFloat, PositiveFloat

from fedsim.arrays import Arrays, WeightedMean, add, scale, subtract
from fedsim.errors import PluginError
from fedsim.strategy import ARRAYS, CONFIG, NUM_EXAMPLES, DeltaStrategy, State

FIVE = 5


@dataclass(kw_only=True)
class FedMeZO(DeltaStrategy):
    """Weighted average, and a learning rate for each client, which must go by it.

    Args:
        learning_rate: Rate of a client whose signal is average.
        spread: Largest distance from it; less than ``learning_rate``.
        signal: What a client's rate depends on.
        server_learning_rate: Step along the mean delta.
        shared_seeds: Let all clients ``fedmezo`` of a round move along the same directions.
    """

    tells: ClassVar[tuple[str, ...]] = ("learning-rate",)

    learning_rate: PositiveFloat = 1e-3
    spread: NonNegativeFloat = 5e-4
    signal: Literal["model-diff", "round-wise", "five-round", "random", "frozen"] = "model-diff"
    server_learning_rate: PositiveFloat = 1.0
    shared_seeds: bool = False

    def __post_init__(self) -> None:
        if self.spread >= self.learning_rate:
            raise PluginError(
                f"spread {self.spread:g} lets learning rates fall to 0 and below",
                key=("strategy", "spread"),
                allowed=f"Less than learning_rate {self.learning_rate:g}",
            )

    @property
    def additive(self) -> bool:  # type: ignore[override]
        """Whether no single client's answer is looked at."""
        return self.signal in ("random", "frozen")

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the weights, each client with its learning rate."""
        messages = list(super().configure_train(server_round, arrays, config, grid))
        if self.shared_seeds:
            config["direction-seed"] = self.seeds.integer("directions", server_round)
        rates = self.rates(server_round, [m.metadata.dst_node_id for m in messages])
        contents: dict[float, RecordDict] = {}
        for message in messages:
            rate = rates[message.metadata.dst_node_id]
            if rate not in contents:
                own = ConfigRecord({**config, "learning-rate": rate})
                contents[rate] = RecordDict({ARRAYS: arrays, CONFIG: own})
            message.content = contents[rate]
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average, and note the clients' signals."""
        kept = [reply for reply in replies if not reply.has_error()]
        result = super().aggregate_train(server_round, kept)
        if not self.additive:
            self._note(kept)
        return result

    def server_update(self, weights: Arrays, delta: Arrays, state: State) -> Arrays:
        """One step along the mean delta."""
        return add(weights, scale(delta, self.server_learning_rate))

    def rates(self, server_round: int, nodes: Sequence[int]) -> dict[int, float]:
        """The learning rate of each client of a round."""
        if self.signal == "random":
            draw = self.seeds.numpy("learning-rate", server_round)
            shares = dict(zip(nodes, draw.uniform(-1, 1, len(nodes)).tolist(), strict=True))
        else:
            shares = standardised(self._signals(server_round, nodes))
        return {n: self.learning_rate + self.spread * shares.get(n, 0.0) for n in nodes}

    def _signals(self, server_round: int, nodes: Sequence[int]) -> dict[int, float]:
        history: Mapping[int, list[float]] = self.state.get("history", {})
        known = {n: history[n] for n in nodes if n in history}
        if self.signal == "frozen":
            return {}
        if self.signal == "five-round":
            late = server_round > FIVE
            return {n: sum(h) / len(h) for n, h in known.items()} if late else {}
        return {n: h[-1] for n, h in known.items()}

    def _note(self, replies: Sequence[Message]) -> None:
        history = self.state.setdefault("history", {})
        for node, value in self._found(replies).items():
            history[node] = [*history.get(node, []), value][-FIVE:]

    def _found(self, replies: Sequence[Message]) -> dict[int, float]:
        """The round's signals; clients that dropped every step have no loss to tell."""
        nodes = [r.metadata.src_node_id for r in replies]
        numbers = [next(iter(r.content.metric_records.values())) for r in replies]
        if self.signal == "model-diff":
            found = _distances([self._delta(r.content) for r in replies], numbers)
            return dict(zip(nodes, found, strict=True))
        told = zip(nodes, numbers, strict=True)
        return {n: float(x["train_loss"]) for n, x in told if "train_loss" in x}  # type: ignore[arg-type]


def standardised(signals: Mapping[int, float]) -> dict[int, float]:
    """Signals moved to mean 0 and scaled into [-1, 1].

    >>> standardised({7: 1.0, 8: 2.0, 9: 6.0})
    {7: -0.6666666666666666, 8: -0.3333333333333333, 9: 1.0}
    """
    if not signals:
        return {}
    mean = sum(signals.values()) / len(signals)
    largest = max(abs(s - mean) for s in signals.values()) or 1.0
    return {node: (s - mean) / largest for node, s in signals.items()}


def _distances(deltas: Sequence[Arrays], numbers: Sequence[MetricRecord]) -> list[float]:
    """How far each update is from the mean one: the sum of L2 distances over tensors."""
    mean = WeightedMean()
    for delta, record in zip(deltas, numbers, strict=True):
        mean.update(delta, float(record[NUM_EXAMPLES]))  # type: ignore[arg-type]
    center = mean.result() if deltas else {}
    differences = [subtract(delta, center) for delta in deltas]
    return [sum(float(np.linalg.norm(x)) for x in d.values()) for d in differences]
