"""``python -m tests.bench.directions``: how fast directions are made and added, on one core.

To all parameters of a model of MiniLM's shape (105 tensors, 22.7 million values), or to one vector.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import get_args

import numpy as np
import torch

from fedsim.directions import Directions, Kind, num_values


def seconds(works: Sequence[Callable[[], object]], repeats: int) -> list[list[float]]:
    """Wall seconds of several works in turn, after one turn to warm up; a row for each turn."""
    rows = []
    for _ in range(repeats + 1):
        row = []
        for work in works:
            start = time.perf_counter()
            work()
            row.append(time.perf_counter() - start)
        rows.append(row)
    return rows[1:]


def bert() -> torch.nn.Module:
    """A BERT with 6 layers of width 384, and a classifier; random weights."""
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(
        BertConfig(
            hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
        )
    )


def operations(
    whole: dict[str, tuple[int, ...]], seeds: int
) -> dict[str, tuple[int, Callable[[], object]]]:
    """How many values each operation makes, and what does it; the first is torch's.

    One thread unless the name says two.
    """
    x = {name: np.zeros(shape, np.float32) for name, shape in whole.items()}
    tensors = {name: torch.from_numpy(values) for name, values in x.items()}
    size = num_values(x)
    part = np.zeros(min(size, 1_000_000), np.float32)

    def obvious() -> None:
        torch.manual_seed(5)
        for tensor in tensors.values():
            tensor.add_(torch.randn(tensor.shape), alpha=0.1)

    result: dict[str, tuple[int, Callable[[], object]]] = {
        "torch manual_seed + randn + add": (size, obvious)
    }
    for kind in get_args(Kind):
        one, few = Directions(size, kind), Directions(part.size, kind)
        two = Directions(size, kind, threads=2)
        many = range(seeds)
        result |= {
            f"{kind} add": (size, partial(one.add, x, 5, 0.1)),
            f"{kind} add, two threads": (size, partial(two.add, x, 5, 0.1)),
            f"{kind} accumulate {seeds} seeds": (
                seeds * part.size,
                partial(few.accumulate, part, many, [0.1] * seeds),
            ),
            f"{kind} dot with {seeds} seeds": (seeds * part.size, partial(few.dot, part, many)),
        }
    return result


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.directions", description=__doc__)
    parser.add_argument("--size", type=int, help="add to one vector of so many values")
    parser.add_argument("--seeds", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in bert().named_parameters()}
    whole = {"x": (arguments.size,)} if arguments.size else shapes
    named = operations(whole, arguments.seeds)
    times = np.array(seconds([work for _, work in named.values()], arguments.repeats))
    rates = np.array([values for values, _ in named.values()]) / times / 1e6
    for name, rate in zip(named, rates.T, strict=True):
        print(
            f"{name:40} {np.median(rate):7.0f} M values/s, "
            f"{np.median(rate / rates[:, 0]):5.2f} x torch in the same turn"
        )


if __name__ == "__main__":
    main()
