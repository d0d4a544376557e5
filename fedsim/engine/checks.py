"""What must not reach aggregation: checks on updates, metrics, states and payloads."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from typing import Any

import numpy as np

from fedsim.arrays import Arrays, misfit, non_finite, norm
from fedsim.client import Update
from fedsim.codec import Codec, Payload
from fedsim.errors import ClientError, PayloadError

MAX_EXAMPLES = 2**31
"""Largest weight of one client: more would drown the others, or overflow."""
FIRST_WEIGHT = "num-examples"
"""Beside a residual: the weight of a client's first message."""


def check_update(update: Update, like: Arrays) -> float:
    """Reject an update that must not reach aggregation.

    Returns:
        Its L2 norm, whose one look at the values also tells whether any of them is not finite.

    Raises:
        ClientError: Names, shapes or dtypes differ from the model's, a value or the norm is not
            finite, or the weight is no positive number.
    """
    if not isinstance(update, Update):
        raise ClientError(f"train returned {type(update).__name__}, not an Update")
    if difference := misfit(update.arrays, like):
        raise ClientError(f"the update does not fit the model: {difference}")
    length = norm(update.arrays)
    if not math.isfinite(length):
        raise ClientError(
            f"the update's {_not_finite(update.arrays)}",
            hint="Try a lower learning rate or max_grad_norm",
        )
    weight: Any = update.num_examples
    number = isinstance(weight, int | float | np.integer | np.floating)
    if not number or not 0 < weight <= MAX_EXAMPLES:
        raise ClientError(f"num_examples is {repr(weight)[:40]}, not a positive number of rows")
    return length


def check_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metrics as numbers.

    Raises:
        ClientError: One is no number.
    """
    result: dict[str, float] = {}
    for name, value in metrics.items():
        number = np.asarray(value)
        if number.shape or number.dtype.kind not in "biuf":
            raise ClientError(f"metric {name} is {repr(value)[:80]}, not a number")
        result[name] = float(number)
    return result


def check_state(state: Arrays) -> Arrays:
    """A client's private state, if it can be written to a file.

    Raises:
        ClientError: It holds something else than arrays of numbers.
    """
    for name, x in state.items():
        if not isinstance(x, np.ndarray) or x.dtype.kind not in "biuf":
            kind = x.dtype if isinstance(x, np.ndarray) else type(x).__name__
            raise ClientError(f"client.state holds {name} of type {kind}, not an array of numbers")
    return state


def check_survives(client: int, fatal: Container[int]) -> None:
    """Leave out a client that ended every worker process that it was tried in.

    Raises:
        ClientError: It is one of them.
    """
    if client in fatal:
        raise ClientError(
            "it ended every worker process that it was tried in",
            hint="Was it out of memory, or did it hang in compiled code past "
            "engine.client_timeout_s? Fewer workers (engine.workers) need less memory",
        )


def decode_update(codec: Codec, payload: Payload, like: Arrays, residual: Arrays) -> Arrays:
    """A client's update out of its payload, given what its codec remembered before.

    Raises:
        PayloadError: The bytes are damaged, or decode to what must not reach aggregation.
    """
    return _sound(codec.estimate(payload, like, residual), like)


def decode_change(codec: Codec, payload: Payload, like: Arrays) -> Arrays:
    """What a payload changes, where the server needs no more; raises as ``decode_update`` does."""
    return _sound(codec.decode(payload, like), like)


def _sound(arrays: Arrays, like: Arrays) -> Arrays:
    if difference := misfit(arrays, like):
        raise PayloadError(f"the payload does not fit the model: {difference}")
    if not math.isfinite(norm(arrays)):
        raise PayloadError(f"the payload's {_not_finite(arrays)}")
    return arrays


def _not_finite(arrays: Arrays) -> str:
    """Why the norm of these arrays is not finite."""
    bad = non_finite(arrays)
    return f"{bad} holds NaN or infinity" if bad else "values overflow when they are squared"


def check_weight(update: Update, residual: Arrays) -> None:
    """Reject a changed weight where the server holds a mean with the weight of the first message.

    Raises:
        ClientError: ``num_examples`` is not what it was.
    """
    before = residual.setdefault(FIRST_WEIGHT, np.array(update.num_examples))
    if int(before) != update.num_examples:
        raise ClientError(
            f"num_examples was {int(before)} and is {update.num_examples}; the server's mean over "
            "all clients needs a constant one",
            hint="Write error_feedback: {name: ef21, server: mirrors}",
        )
