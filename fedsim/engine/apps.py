"""Flower's ``ClientApp`` on fedsim's workers, and fedsim's clients as a ``ClientApp``.

Foreign apps, and own methods under Flower client mods, speak in messages and weights; here they
meet the worker, which speaks in deltas.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flwr.app import ConfigRecord, Context, Message, Metadata, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedsim.arrays import Arrays, add, misfit, subtract
from fedsim.client import ClientMethod, Update
from fedsim.engine.blocks import Block, ClientState
from fedsim.errors import ClientError
from fedsim.registry import import_object
from fedsim.strategy import ARRAYS, CONFIG, METRICS, NUM_EXAMPLES, to_arrays, to_record

if TYPE_CHECKING:
    from fedsim.engine.worker import Worker


def run_app(
    worker: Worker, client: int, block: Block, received: Arrays, state: ClientState | None
) -> tuple[Update, ClientState | None]:
    """Let an app train one client and turn its reply into an update.

    Raises:
        ClientError: The app answered with an error or with unusable records.
    """
    context = Context(
        run_id=1,
        node_id=client,
        node_config={"partition-id": client, "num-partitions": worker.task.split.num_clients},
        state=state if isinstance(state, RecordDict) else RecordDict(),
        run_config={},
    )
    app = worker.method if isinstance(worker.method, ClientApp) else client_app(worker, block)
    reply = app(_message(client, received, block.config), context)
    if reply.has_error():
        raise ClientError(f"the app answered with an error: {reply.error.reason}")
    records = list(reply.content.array_records.values())
    metrics = list(reply.content.metric_records.values())
    if len(records) != 1 or len(metrics) != 1 or NUM_EXAMPLES not in metrics[0]:
        raise ClientError(
            "the app's reply must hold one ArrayRecord and one MetricRecord with 'num-examples'"
        )
    arrays = to_arrays(records[0])
    if difference := misfit(arrays, received):  # before the subtraction, which would broadcast
        raise ClientError(f"the app's reply does not fit the model: {difference}")
    numbers: dict[str, Any] = {k: v for k, v in metrics[0].items() if not isinstance(v, list)}
    num_examples = numbers.pop(NUM_EXAMPLES, None)
    return Update(subtract(arrays, received), num_examples, numbers), context.state


def client_app(worker: Worker, block: Block) -> ClientApp:
    """The worker's method as a Flower ``ClientApp``, inside the scenario's mods."""
    app = ClientApp()
    method: ClientMethod = worker.method

    @app.train(mods=[import_object(mod) for mod in worker.scenario.mods])
    def train(message: Message, context: Context) -> Message:
        received = to_arrays(next(iter(message.content.array_records.values())))
        worker.task.load(received)
        view = worker._client(context.node_id, block, received, {})
        update = method.train(view)
        metrics: dict[str, Any] = {NUM_EXAMPLES: update.num_examples, **update.metrics}
        content = RecordDict(
            {ARRAYS: to_record(add(received, update.arrays)), METRICS: MetricRecord(metrics)}
        )
        return Message(content, reply_to=message)

    return app


def _message(client: int, received: Arrays, config: Any) -> Message:
    content = RecordDict({ARRAYS: to_record(received), CONFIG: ConfigRecord(dict(config))})
    metadata = Metadata(1, "m", 0, client, "", "", 0.0, 3600.0, "train")
    return Message(content, metadata=metadata)  # type: ignore[call-overload,no-any-return]
