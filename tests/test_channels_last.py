"""Images with their channels last in memory: what changes, and what does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsim import simulation
from fedsim.models.prefix import Rows
from fedsim.scenario import Scenario
from tests.problems import tiny
from tests.test_speed_options import digest, loss_and_gradients, task


def convolutions() -> nn.Module:
    """Two frozen convolutions in a chain, a trained one, and a head."""

    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(1, 8, 3)
            self.blocks = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
            self.head = nn.Linear(8 * 6 * 6, 2)
            for frozen in (self.first, *self.blocks[:2]):
                frozen.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for block in self.blocks:
                x = block(x)
            return self.head(x.flatten(1))

    return Chain()


def with_images(**changes: Any) -> Scenario:
    """A network of convolutions."""
    model = {"name": "tests.test_channels_last:convolutions", **changes.pop("model", {})}
    data = {"path": "tests.test_speed_options:images"}
    return tiny(model=model, data=data, task={"name": "image_classification"}, **changes)


LAST = {"memory_format": "channels_last"}


def test_channels_last_gives_the_same_gradients_up_to_rounding_and_changes_no_weight():
    one, other = (task(with_images(model=m)) for m in ({}, LAST))
    seen: list[Tensor] = []
    other.model.blocks[2].register_forward_hook(lambda module, args, output: seen.append(output))
    exact = loss_and_gradients(one, one.client_data(0))
    rounded = loss_and_gradients(other, dict(other.client_data(0)))
    torch.testing.assert_close(exact, rounded, rtol=1e-4, atol=1e-6)
    assert seen[-1].is_contiguous(memory_format=torch.channels_last)
    assert not seen[-1].is_contiguous()
    for parameter in other.parameters.values():
        assert parameter.is_contiguous()
        assert parameter.grad is not None
        assert parameter.grad.is_contiguous()


def test_channels_last_and_frozen_blocks_together_keep_equal_bits(tmp_path):
    assert isinstance(task(with_images(model=LAST)).client_data(0), Rows)
    runs = [with_images(model=LAST, engine={"cache_prefix": on}) for on in (True, False)]
    assert digest(runs[0], tmp_path) == digest(runs[1], tmp_path)


def test_channels_last_and_clients_in_one_call_agree_with_sgd(tmp_path):
    made = []
    for name in ("sgd", "vmap_sgd"):
        client = {"name": name, "batch_size": 6, "learning_rate": 0.1}
        run = simulation.run(with_images(model=LAST, client=client), out=tmp_path)
        assert run.rounds[-1]["clients/failed"] == 0
        made.append([r["eval/loss"] for r in run.rounds])
    assert made[0][-1] < made[0][0]
    np.testing.assert_allclose(*made, rtol=1e-5)
