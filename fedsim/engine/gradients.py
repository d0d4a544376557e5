"""The gradient of a client's loss over all its rows, for those who look at the loss itself."""

from __future__ import annotations

import numpy as np

from fedsim.arrays import Arrays
from fedsim.client import Client
from fedsim.task import num_rows

ROWS = 256
"""Rows that go through the model at once."""


def mean_gradient(client: Client, weights: Arrays) -> Arrays:
    """Gradient of the mean loss, without dropout, at any weights; zero for what is not trained.

    The task's model holds these weights afterwards.
    """
    client.task.load(weights)
    client.task.set_training(False)
    parameters = client.parameters
    for parameter in parameters.values():
        parameter.grad = None
    for batch in client.batches(ROWS):
        rows = num_rows(batch) / client.num_examples
        for piece, part in client.pieces(batch):
            (rows * part * client.loss(piece)).backward()  # type: ignore[no-untyped-call]
    result = {name: np.zeros_like(x) for name, x in weights.items()}
    for name, parameter in parameters.items():
        if parameter.grad is not None:
            result[name] = parameter.grad.cpu().numpy().copy()
            parameter.grad = None
    return result
