"""Multilayer perceptrons."""

from __future__ import annotations

from itertools import pairwise

from torch import nn


def mlp(
    num_features: int = 64, hidden: tuple[int, ...] = (64,), num_classes: int = 10
) -> nn.Module:
    """Dense layers with ReLU between them, on all values of a row; an image is flattened.

    >>> sum(p.numel() for p in mlp().parameters())
    4810
    """
    widths = (num_features, *hidden, num_classes)
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
