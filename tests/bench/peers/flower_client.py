"""The client of the Flower peer, in a module that actors import: its globals stay."""

from __future__ import annotations

from functools import cache

import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from tests.bench import models, works
from tests.bench.local import Resident

client_app = ClientApp()
resident = cache(lambda name: Resident(works.WORKS[name]))


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Train one client on the actor's resident model."""
    config = message.content["config"]
    model = resident(config["work"])
    received = message.content["arrays"]
    model.reset([torch.from_numpy(received[name].numpy()) for name in model.trained])
    loss = model.train(int(context.node_config["partition-id"]), int(config["server-round"]))
    numbers = MetricRecord({"num-examples": model.work.rows, "train_loss": loss})
    content = RecordDict({"arrays": record(model.model), "metrics": numbers})
    return Message(content, reply_to=message)


def record(model: torch.nn.Module) -> ArrayRecord:
    """What is trained, as Flower's record."""
    trained = models.trained(model).items()
    return ArrayRecord({name: Array(p.detach().numpy()) for name, p in trained})
