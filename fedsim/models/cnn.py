"""The small CNN of the field's speed benchmarks.

Granqvist et al., "pfl-research: simulation framework for accelerating research in Private
Federated Learning", NeurIPS 2024, https://arxiv.org/abs/2404.06430 (the CIFAR10 benchmark's
``simple_cnn``: 1,626,442 parameters for 3x32x32 images and 10 classes).
"""

from __future__ import annotations

from torch import nn


def simple_cnn(channels: int = 3, image_size: int = 32, num_classes: int = 10) -> nn.Module:
    """Two convolutions, two dense layers, dropout; Xavier-uniform weights.

    >>> sum(p.numel() for p in simple_cnn().parameters())
    1626442
    """
    side = (image_size - 4) // 2
    model = nn.Sequential(
        nn.Conv2d(channels, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(64 * side * side, 128),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(128, num_classes),
    )
    for layer in model:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
    return model
