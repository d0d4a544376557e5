"""A Flower ``ClientApp`` that knows nothing of fedsim, for tests."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Move every weight by partition-id + 1; count participations in the context."""
    step = int(context.node_config["partition-id"]) + 1
    received = next(iter(message.content.array_records.values()))
    state = {k: v + step for k, v in received.to_torch_state_dict().items()}
    seen = context.state.metric_records.get("seen", MetricRecord({"count": 0}))
    count = int(seen["count"]) + 1
    context.state["seen"] = MetricRecord({"count": count})
    metrics = MetricRecord({"num-examples": 10, "seen": count})
    content = RecordDict({"arrays": ArrayRecord(state), "metrics": metrics})
    return Message(content, reply_to=message)


broken = ClientApp()


@broken.train()
def no_metrics(message: Message, context: Context) -> Message:
    """A reply that lacks its weight."""
    content = RecordDict({"arrays": next(iter(message.content.array_records.values()))})
    return Message(content, reply_to=message)
