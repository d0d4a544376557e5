"""What the zeroth-order clients share: probing a loss along a direction, and moving along it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from fedsim.client import Client
from fedsim.directions import ADD_FLOPS, Directions, Kind, Target, num_values
from fedsim.task import Batch


class Walker:
    """Moves a client's parameters along directions, in place.

    Without a copy, a probe adds ``eps z``, ``-2 eps z`` and, together with the step, ``eps z``
    again: three roundings of float32. After T steps a weight w is off by at most
    ``3 T 2^-24 (|w| + eps |z|)``, in practice by its square root; the next round begins at the
    received weights again. With ``exact`` a copy of the parameters makes each probe start, and the
    step end, at the very weights.

    Args:
        client: Whose parameters are moved.
        kind: Distribution of the directions.
        eps: Length of a probe.
        exact: Keep a copy instead of subtracting what was added.
    """

    def __init__(self, client: Client, kind: Kind, eps: float, exact: bool) -> None:
        self._client, self._eps = client, eps
        self.weights = memory(client)
        self._parameters = [p.detach() for p in client.parameters.values()]
        size = num_values(self.weights)
        self.directions = Directions(size, kind, threads=torch.get_num_threads())
        self._copy = [p.clone() for p in self._parameters] if exact else None
        self._away: int | None = None  # the seed along which a probe left the parameters

    def probe(self, batch: Batch, seed: int) -> tuple[float, float]:
        """Losses at ``w + eps z`` and ``w - eps z``."""
        self.settle()
        self._shift({seed: self._eps})
        above = self._loss(batch)
        if self._copy is None:
            self._shift({seed: -2 * self._eps})
        else:
            self._restore()
            self._shift({seed: -self._eps})
        self._away = seed
        return above, self._loss(batch)

    def move(self, terms: Mapping[int, float]) -> None:
        """``w += sum scale * z(seed)``; the way back from a probe is part of the same pass."""
        if self._copy is not None:
            self.settle()
            self._shift(terms)
            for kept, parameter in zip(self._copy, self._parameters, strict=True):
                kept.copy_(parameter)
        else:
            back = {} if self._away is None else {self._away: self._eps}
            merged = {s: back.get(s, 0.0) + terms.get(s, 0.0) for s in {**back, **terms}}
            self._away = None
            self._shift(merged)

    def settle(self) -> None:
        """Return from the last probe."""
        if self._away is not None and self._copy is not None:
            self._restore()
            self._away = None
        elif self._away is not None:
            self.move({})

    def _restore(self) -> None:
        assert self._copy is not None
        for kept, parameter in zip(self._copy, self._parameters, strict=True):
            parameter.copy_(kept)

    def _shift(self, terms: Mapping[int, float]) -> None:
        self._client.count(ADD_FLOPS * self.directions.size * len(terms))
        self.directions.accumulate(self.weights, list(terms), list(terms.values()))

    def _loss(self, batch: Batch) -> float:
        return self._client.loss(batch).item()


def memory(client: Client) -> Target:
    """Where a client's parameters are: arrays on the CPU, tensors elsewhere.

    Directions run along memory: parameters that lie otherwise, such as transposed ones, are moved.
    """
    for p in client.parameters.values():
        p.data = p.data.contiguous()
    parameters = {name: p.detach() for name, p in client.parameters.items()}
    if all(p.device.type == "cpu" for p in parameters.values()):
        return {name: p.numpy() for name, p in parameters.items()}
    return parameters


@contextmanager
def forward_only(client: Client) -> Iterator[None]:
    """Evaluation mode (no dropout) without autograd: memory as for inference."""
    client.task.model.eval()
    with torch.no_grad():
        yield


def slope(losses: tuple[float, float], eps: float, loss_clip: float | None) -> float | None:
    """The directional derivative, or None where the step must be dropped."""
    above, below = losses
    if not (math.isfinite(above) and math.isfinite(below)):
        return None
    if loss_clip is not None and abs(above - below) > loss_clip:
        return None
    return (above - below) / (2 * eps)


class Log:
    """Losses and scalars of a client's steps, as metrics and for ``log_step``."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._losses: list[float] = []
        self._scalars: list[float] = []
        self.dropped = 0

    def add(self, step: int, seed: int, losses: tuple[float, float], scalar: float | None) -> None:
        """Note a probe in a step, counted from 1; with the scalar ``None`` it is a dropped one."""
        above, below = losses
        found = {"scalar": scalar, "loss_plus": above, "loss_minus": below}
        self._client.log_step(step, direction_seed=seed, **found)
        if scalar is None:
            self.dropped += 1
        else:
            self._losses.append(sum(losses) / 2)
            self._scalars.append(abs(scalar))

    @property
    def metrics(self) -> dict[str, float]:
        """Dropped steps; mean loss, mean and largest absolute scalar where a step was made."""
        dropped = {"dropped_steps": float(self.dropped)}
        if not self._scalars:
            return dropped
        return {
            "train_loss": sum(self._losses) / len(self._losses),
            "mean_abs_scalar": sum(self._scalars) / len(self._scalars),
            "max_abs_scalar": max(self._scalars),
            **dropped,
        }


def draw_seed(generator: torch.Generator) -> int:
    """A fresh seed for a direction."""
    return int(torch.randint(2**62, (), generator=generator).item())
