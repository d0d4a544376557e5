"""Options that go below the bare loop's floor: what each changes, how much faster, how accurate.

Measured on one work each, in turn with the bare loop and with fedsim as it is. The bare loop trains
LoRA in all layers in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.bench.works import WORKS, Work


@dataclass(frozen=True)
class Option:
    """A variant of a work's scenario.

    Attributes:
        work: Name of the work.
        title: For the table.
        changes: Dotted keys of the scenario and their values.
    """

    work: str
    title: str
    changes: Mapping[str, Any]


TOP = {"model.peft.layers_to_transform": [4, 5]}
BF16 = {"model.dtype": "bfloat16"}
OPTIONS = {
    "top": Option("lora_minilm", "top third of the layers", {**TOP, "engine.cache_prefix": False}),
    "prefix": Option("lora_minilm", "top third, cached prefix", TOP),
    "bf16": Option("lora_minilm", "bfloat16 where frozen", BF16),
    "prefix_bf16": Option("lora_minilm", "top third, cached prefix, bfloat16", {**TOP, **BF16}),
    "channels": Option("cnn", "channels last", {"model.memory_format": "channels_last"}),
    "vmap": Option("logistic", "all clients of a block at once", {"client.name": "vmap_sgd"}),
}
"""By name; the order of the table."""


def of(work: Work) -> dict[str, Option]:
    """The options that are measured on a work."""
    return {name: option for name, option in OPTIONS.items() if WORKS[option.work] is work}
