"""``python -m tests.bench.directions``: how fast directions are made and added, on one core.

To all parameters of a model of MiniLM's shape (105 tensors, 22.7 million values), or to one vector.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import get_args

import numpy as np
import torch

from fedsim.directions import Directions, Kind, num_values


def best_s(work: Callable[[], object], repeats: int) -> float:
    """Wall seconds of the fastest of several calls, after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def bert() -> torch.nn.Module:
    """A BERT with 6 layers of width 384, and a classifier; random weights."""
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(
        BertConfig(
            hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
        )
    )


def rates(whole: dict[str, tuple[int, ...]], seeds: int, repeats: int) -> dict[str, float]:
    """Million values a second for each operation, one thread unless the name says two."""
    x = {name: np.zeros(shape, np.float32) for name, shape in whole.items()}
    tensors = {name: torch.from_numpy(values) for name, values in x.items()}
    size = num_values(x)
    part = np.zeros(min(size, 1_000_000), np.float32)

    def obvious() -> None:
        torch.manual_seed(5)
        for tensor in tensors.values():
            tensor.add_(torch.randn(tensor.shape), alpha=0.1)

    result = {"torch manual_seed + randn + add": size / best_s(obvious, repeats) / 1e6}
    for kind in get_args(Kind):
        one, few = Directions(size, kind), Directions(part.size, kind)
        two = Directions(size, kind, threads=2)
        alone = best_s(partial(one.add, x, 5, 0.1), repeats)
        both = best_s(partial(two.add, x, 5, 0.1), repeats)
        many = best_s(partial(few.accumulate, part, range(seeds), [0.1] * seeds), repeats)
        dots = best_s(partial(few.dot, part, range(seeds)), repeats)
        result |= {
            f"{kind} add": size / alone / 1e6,
            f"{kind} add, two threads": size / both / 1e6,
            f"{kind} accumulate {seeds} seeds": seeds * part.size / many / 1e6,
            f"{kind} dot with {seeds} seeds": seeds * part.size / dots / 1e6,
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
    result = rates(whole, arguments.seeds, arguments.repeats)
    base = next(iter(result.values()))
    for name, rate in result.items():
        print(f"{name:40} {rate:7.0f} M values/s, {rate / base:5.2f} x torch")


if __name__ == "__main__":
    main()
