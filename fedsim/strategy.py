"""The contract of an aggregation strategy: Flower's ``Strategy``, written as mathematics on deltas.

A subclass of ``DeltaStrategy`` writes ``server_update(weights, delta, state)``; sampling, weighting
and bookkeeping are here. It is a complete Flower strategy: it runs on fedsim's grids, where replies
carry deltas, and on a plain Flower grid, where replies carry weights. Stock strategies of
``flwr.serverapp.strategy`` run unchanged beside it.
"""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedProx,
    FedXgbBagging,
    FedXgbCyclic,
    FedYogi,
    Strategy,
)
from numpy.typing import NDArray

from fedsim.arrays import Arrays, WeightedMean, conform, norm, subtract
from fedsim.errors import PayloadError, PluginError
from fedsim.seeds import Seeds

ARRAYS, DELTA, CONFIG, METRICS = "arrays", "delta", "config", "metrics"
"""Record names in messages; a reply of fedsim's grid holds ``delta`` where a plain one holds
``arrays``."""
PACKED = "packed"
"""Record of vectors that travel in place of the weights; ``arrays`` beside it costs no bytes."""
NUM_EXAMPLES = "num-examples"
WEIGHT = "server-weight"
"""Record, and its only entry, by which a strategy's own weight travels with a message."""
State = dict[str, Any]
"""What a strategy keeps between rounds: named ``Arrays``, numbers and strings."""
_STOCK_ADDITIVE = (FedAvg, FedAvgM, FedAdam, FedAdagrad, FedYogi, FedProx)

log = logging.getLogger("fedsim")
# The scenario's `evaluate` section decides about tests on clients; Flower warns that it is off.
logging.getLogger("flwr").addFilter(lambda r: "fraction_evaluate is set to" not in r.getMessage())


class DeltaStrategy(Strategy):
    """A strategy whose whole mathematics is one function of weights and mean delta.

    Class attributes declare facts: ``accepts`` (kinds of update), ``tells`` (keys of the
    configuration that clients must heed) and ``additive`` (whether clients may be averaged in
    blocks before the server sees them, which needs nothing but their weighted mean).
    """

    is_plugin: ClassVar[bool] = True
    accepts: ClassVar[tuple[str, ...]] = ("delta",)
    tells: ClassVar[tuple[str, ...]] = ()
    additive: ClassVar[bool] = True
    overlaps = False
    """Whether the next cohort trains while this one's answers travel; a property where it depends
    on options."""

    fraction_train = 1.0
    """Share of clients in a round; set by the engine."""
    fraction_evaluate = 0.0
    """Share of clients that test the model on their own data; set by the engine."""
    num_clients: int | None = None
    """All clients, present or not; set by the engine, counted on a plain Flower grid."""
    seeds = Seeds(0)
    """Streams for the choice of clients; set by the engine."""
    shares_weights: bool = True
    """Whether workers get the weights beside a packed message, or compute them from it."""
    initial: Callable[[], Arrays] | None = None
    """Gives the parameters' initial values; set by the engine."""
    participation_rate: Callable[[int], float] | None = None
    """True share of rounds in which a client is present; set by the engine where it is known."""
    cohort: Mapping[int, float] = {}
    """The round's clients with their own weights, if they have some, less those who failed."""
    total_weight = 0.0
    """Sum of the weights behind the mean that ``server_update`` is given."""

    @cached_property
    def state(self) -> State:
        """Everything that lives between rounds; checkpointed by the engine."""
        return {}

    @cached_property
    def _notes(self) -> dict[str, Any]:
        return {}

    def note(self, **numbers: float | list[float]) -> None:
        """Report numbers of this round, such as the norm of a momentum.

        They go to rounds.jsonl as ``agg/<name>``, lists too.
        """
        self._notes.update(numbers)

    def take_notes(self) -> dict[str, Any]:
        """What was noted since the last call."""
        notes = dict(self._notes)
        self._notes.clear()
        return notes

    @abstractmethod
    def server_update(self, weights: Arrays, delta: Arrays, state: State) -> Arrays:
        """New global weights.

        Args:
            weights: Current global weights.
            delta: Mean of the clients' deltas, weighted by ``client_weights``.
            state: This strategy's state; read and replace entries freely.
        """

    def broadcasts(self, server_round: int, nodes: Sequence[int]) -> Mapping[int, Arrays]:
        """What travels to clients in place of the weights, for those that get something else.

        Clients that get the same should get the same object: it is then encoded once.
        """
        return {}

    def client_weights(
        self, server_round: int, clients: Sequence[int]
    ) -> Mapping[int, float] | None:
        """Positive weights in the mean of those who were chosen; none takes ``num-examples``."""
        return None

    def correct(self, client: int, delta: Arrays, state: State) -> Arrays:
        """What of a client's delta enters the mean; called only where ``additive`` is off."""
        return delta

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the weights to a uniform sample of clients."""
        self._weights = to_arrays(arrays)
        nodes = self._sample("cohort", server_round, self.fraction_train, grid)
        self.cohort = dict(self.client_weights(server_round, nodes) or {})
        packed = self._packed(server_round, nodes, arrays)
        return to_messages(
            nodes, server_round, arrays, config, MessageType.TRAIN, self.cohort, packed
        )

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average deltas and metrics as replies arrive, then apply ``server_update``."""
        mean, metrics, failed = WeightedMean(), WeightedMetrics(), set()
        for reply in replies:
            if reply.has_error():
                failed.add(reply.metadata.src_node_id)
                continue
            numbers = next(iter(reply.content.metric_records.values()))
            client, delta = reply.metadata.src_node_id, self._delta(reply.content)
            if not self.additive:
                delta = self.correct(client, delta, self.state)
            examples = float(numbers[NUM_EXAMPLES])  # type: ignore[arg-type]
            own = self.cohort.get(client, examples)
            mean.update(delta, float(numbers.get(WEIGHT, own)))  # type: ignore[arg-type]
            metrics.update(numbers, examples)
        if not mean.weight:
            return None, None
        self.total_weight = mean.weight
        self.cohort = {c: w for c, w in self.cohort.items() if c not in failed}
        delta = mean.result()
        self._note_mean(delta)
        updated = self.server_update(self._weights, delta, self.state)
        return to_record(new_weights(self, updated, self._weights)), metrics.result()

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask a uniform sample of clients to test the weights on their own data."""
        if not self.fraction_evaluate:
            return []
        self._weights = to_arrays(arrays)
        nodes = self._sample("evaluate", server_round, self.fraction_evaluate, grid)
        packed = self._packed(server_round, nodes, arrays)
        return to_messages(nodes, server_round, arrays, config, MessageType.EVALUATE, packed=packed)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Mean of the clients' scores, weighted by ``num-examples``."""
        metrics = WeightedMetrics()
        for reply in replies:
            if not reply.has_error():
                numbers = next(iter(reply.content.metric_records.values()))
                metrics.update(numbers, float(numbers[NUM_EXAMPLES]))  # type: ignore[arg-type]
        return metrics.result() if metrics.weight else None

    def summary(self) -> None:
        """Log the settings."""
        log.info("%s(%s)", type(self).__name__, vars(self))

    def _note_mean(self, delta: Arrays) -> None:
        if "delta" in self.accepts:  # packed vectors have another length
            self.note(mean_norm=norm(delta))
        if weights := self.cohort.values():
            mean = math.fsum(weights) / len(weights)
            self.note(weight_min=min(weights), weight_mean=mean, weight_max=max(weights))

    def _sample(self, stream: str, server_round: int, fraction: float, grid: Grid) -> list[int]:
        nodes = grid.get_node_ids()
        nodes = nodes if isinstance(nodes, Sequence) else list(nodes)
        self.num_clients = self.num_clients or len(nodes)
        size = min(len(nodes), max(1, round(fraction * len(nodes))))
        draw = self.seeds.numpy(stream, server_round)
        return [nodes[int(i)] for i in draw.choice(len(nodes), size, replace=False)]

    def _packed(
        self, server_round: int, nodes: Sequence[int], arrays: ArrayRecord
    ) -> dict[int, RecordDict]:
        """Contents with vectors in place of the weights; one for all nodes that get the same."""
        beside = {ARRAYS: arrays} if self.shares_weights else {}
        sent = self.broadcasts(server_round, nodes)
        one = {
            id(vectors): RecordDict({PACKED: to_record(vectors), **beside})
            for vectors in {id(v): v for v in sent.values()}.values()
        }
        return {node: one[id(vectors)] for node, vectors in sent.items()}

    def _delta(self, content: RecordDict) -> Arrays:
        if DELTA in content.array_records:
            return to_arrays(content.array_records[DELTA], copy=False)
        return subtract(to_arrays(next(iter(content.array_records.values()))), self._weights)


class WeightedMetrics:
    """Streaming weighted mean of the numbers in metric records.

    What only some records hold is left out: its mean would pass for one over all of them.
    """

    def __init__(self) -> None:
        self.weight = 0.0
        self._sums: dict[str, float] = {}
        self._weights: dict[str, float] = {}

    def update(self, metrics: MetricRecord, weight: float) -> None:
        """Add one record of the given weight."""
        for name, value in metrics.items():
            if name not in (NUM_EXAMPLES, WEIGHT) and not isinstance(value, list):
                self._sums[name] = self._sums.get(name, 0.0) + weight * value
                self._weights[name] = self._weights.get(name, 0.0) + weight
        self.weight += weight

    def result(self) -> MetricRecord:
        """The means; requires a positive total weight."""
        common = [name for name in self._sums if self._weights[name] == self.weight]
        return MetricRecord({name: self._sums[name] / self.weight for name in common})


def is_additive(strategy: Strategy) -> bool:
    """Whether a block of clients may answer as one heavier client."""
    return bool(getattr(strategy, "additive", type(strategy) in _STOCK_ADDITIVE))


class LiveArray(Array):
    """Flower's ``Array`` over a NumPy array; its bytes are made only when they are asked for."""

    def __init__(self, ndarray: NDArray[Any]) -> None:
        self.dtype, self.shape, self.stype = str(ndarray.dtype), ndarray.shape, "numpy.ndarray"
        self.ndarray = ndarray

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """The array in Flower's serialisation."""
        return Array(self.ndarray).data

    def numpy(self) -> NDArray[Any]:
        """A copy of the array, as Flower's own class gives."""
        return self.ndarray.copy()


def to_arrays(record: ArrayRecord, copy: bool = True) -> Arrays:
    """Flower's record as plain arrays, in the record's order; without ``copy``, only to read."""
    return {
        name: array.ndarray if isinstance(array, LiveArray) and not copy else array.numpy()
        for name, array in record.items()
    }


def to_record(arrays: Arrays, copy: bool = True) -> ArrayRecord:
    """Plain arrays as Flower's record; without ``copy``, if nobody will write to them."""
    record = ArrayRecord()  # its constructor would turn each array into bytes
    for name, x in arrays.items():
        record[name] = LiveArray(np.array(x) if copy else np.asarray(x))
    return record


def to_messages(
    nodes: Sequence[int],
    server_round: int,
    arrays: ArrayRecord,
    config: ConfigRecord,
    kind: str,
    weights: Mapping[int, float] | None = None,
    packed: Mapping[int, RecordDict] | None = None,
) -> list[Message]:
    """The same content for every node, unless it has its own weight or gets packed vectors."""
    config["server-round"] = server_round
    shared = RecordDict({ARRAYS: arrays})
    contents = {node: (packed or {}).get(node, shared) for node in nodes}
    for content in {id(c): c for c in contents.values()}.values():
        content[CONFIG] = config
    if weights:
        own = {node: MetricRecord({WEIGHT: weights[node]}) for node in nodes}
        contents = {n: RecordDict({**contents[n], WEIGHT: own[n]}) for n in nodes}
    return [Message(contents[n], dst_node_id=n, message_type=kind) for n in nodes]


def sampling_arguments(cohort: int, evaluated: int, num_clients: int) -> dict[str, Any]:
    """Constructor arguments that make a stock strategy sample exactly these numbers of clients."""

    def fraction(size: int) -> float:  # Flower truncates n * fraction
        return min(1.0, (size + 0.5) / num_clients) if size else 0.0

    return {
        "fraction_train": fraction(cohort),
        "min_train_nodes": cohort,
        "fraction_evaluate": fraction(evaluated),
        "min_evaluate_nodes": evaluated,
        "min_available_nodes": min(2, num_clients),
    }


def check_strategy(strategy: Any) -> None:
    """Refuse what cannot aggregate the updates of a torch model.

    Raises:
        PluginError: It is no Flower strategy, or one that aggregates trees.
    """
    if isinstance(strategy, FedXgbBagging | FedXgbCyclic):
        raise PluginError(
            f"{type(strategy).__name__} aggregates XGBoost trees, not the arrays of a torch model",
            key=("strategy",),
            allowed="Any other strategy of flwr.serverapp.strategy",
        )
    if not isinstance(strategy, Strategy):
        raise PluginError(
            f"{type(strategy).__name__} is not a Flower strategy",
            key=("strategy",),
            hint="Subclass fedsim.strategy.DeltaStrategy or flwr.serverapp.strategy.Strategy",
        )


def new_weights(strategy: Strategy, updated: Any, weights: Arrays) -> Arrays:
    """What ``server_update`` returned, like the weights that it was given.

    Raises:
        PluginError: It returned something else.
    """
    try:
        return conform(updated, weights)
    except PayloadError as error:
        wrong = str(error)
    except (AttributeError, TypeError):
        values = updated.values() if isinstance(updated, Mapping) else ()
        kinds = ", ".join(sorted({type(x).__name__ for x in values}))
        wrong = f"{type(updated).__name__} of {kinds}" if kinds else type(updated).__name__
    raise PluginError(
        f"{type(strategy).__name__}.server_update does not return new weights: {wrong}",
        key=("strategy",),
        allowed="A dict of arrays with the names and shapes of the weights that it is given",
    )
