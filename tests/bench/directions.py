"""``python -m tests.bench.directions``: how fast directions are made and added, on one core."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import get_args

import numpy as np
import torch

from fedsim.directions import Directions, Kind


def best_s(work: Callable[[], object], repeats: int) -> float:
    """Wall seconds of the fastest of several calls, after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def rates(size: int, seeds: int, repeats: int) -> dict[str, float]:
    """Million values a second for each operation, one thread unless the name says two."""
    x = np.zeros(size, np.float32)
    part = x[: size // 8]
    tensor = torch.from_numpy(x)

    def obvious() -> None:
        torch.manual_seed(5)
        tensor.add_(torch.randn(size), alpha=0.1)

    result = {"torch manual_seed + randn + add": size / best_s(obvious, repeats) / 1e6}
    for kind in get_args(Kind):
        whole, few = Directions(size, kind), Directions(part.size, kind)
        both = Directions(size, kind, threads=2)
        one = best_s(partial(whole.add, x, 5, 0.1), repeats)
        two = best_s(partial(both.add, x, 5, 0.1), repeats)
        many = best_s(partial(few.accumulate, part, range(seeds), [0.1] * seeds), repeats)
        dots = best_s(partial(few.dot, part, range(seeds)), repeats)
        result |= {
            f"{kind} add": size / one / 1e6,
            f"{kind} add, two threads": size / two / 1e6,
            f"{kind} accumulate {seeds} seeds": seeds * part.size / many / 1e6,
            f"{kind} dot with {seeds} seeds": seeds * part.size / dots / 1e6,
        }
    return result


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.directions", description=__doc__)
    parser.add_argument("--size", type=int, default=8_000_000)
    parser.add_argument("--seeds", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name, rate in rates(**vars(arguments)).items():
        print(f"{name:40} {rate:7.0f} M values/s")


if __name__ == "__main__":
    main()
