"""``python -m tests.bench.codecs``: codecs on ten million float32, one core, and their ratios.

A rate is the best of a few repeats, in millions of elements a second; encoding includes the look
for NaN, the checksum and the assembly of the payload, decoding all checks and the dense result.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.chain import build_chain
from fedsim.codec import Payload, Reader, Writer
from fedsim.codecs._symbols import read_symbols, write_symbols
from tests.bench import machine

TARGETS = {"topk 1 %": 40.0, "int8": 300.0, "ANS, ternary": 50.0}
"""Millions of elements a second, for encoding and for decoding."""
CASES: dict[str, list[dict[str, Any]]] = {
    "none": [{"name": "none"}],
    "fp16": [{"name": "fp16"}],
    "bf16": [{"name": "bf16"}],
    "int8": [{"name": "int8"}],
    "int4": [{"name": "int4"}],
    "sign": [{"name": "sign"}],
    "topk 1 %": [{"name": "topk", "density": 0.01}],
    "topk 10 %": [{"name": "topk", "density": 0.1}],
    "topk 1 % + qsgd 4": [{"name": "topk", "density": 0.01}, {"name": "qsgd", "bits": 4}],
    "topk 1 %, ef21": [{"name": "topk", "density": 0.01, "error_feedback": "ef21"}],
    "randk 1 %": [{"name": "randk", "density": 0.01}],
    "threshold": [{"name": "threshold", "threshold": 1.0}],
    "qsgd 4": [{"name": "qsgd", "bits": 4}],
    "terngrad": [{"name": "terngrad"}],
    "natural": [{"name": "natural"}],
    "kmeans 16": [{"name": "kmeans", "clusters": 16}],
    "compeft 5 %": [{"name": "compeft", "density": 0.05}],
    "compeft 1 %": [{"name": "compeft", "density": 0.01}],
    "fedzip 0.2": [{"name": "fedzip", "kept": 0.2}],
    "fedzip 0.01": [{"name": "fedzip", "kept": 0.01}],
    "powersgd 4": [{"name": "powersgd", "rank": 4}],
    "random_projection 10 %": [{"name": "random_projection", "density": 0.1}],
}


def best(call: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Shortest time of a few, and the last result."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - start)
    return min(times), result


def measure(sections: list[dict[str, Any]], size: int, repeats: int) -> dict[str, float]:
    """Rates and ratio of a chain on normal values."""
    rows = 2500 if size % 2500 == 0 else 1
    shape = (rows, size // rows)
    x = {"w": np.random.default_rng(0).standard_normal(shape, dtype=np.float32)}
    codec = build_chain(sections)
    encoding, payload = best(lambda: codec.encode(x, {}), repeats)
    copy = Payload(payload.data)
    decoding, _ = best(lambda: codec.decode(copy, x), repeats)
    rate = size / 1e6
    ratio = 4 * size / payload.num_bytes
    return {"encode": rate / encoding, "decode": rate / decoding, "ratio": ratio}


def measure_ans(size: int, repeats: int) -> dict[str, float]:
    """Rates of the entropy coder on ternary symbols, 5 % of them not zero."""
    draw = np.random.default_rng(0).random(size, dtype=np.float32)
    symbols = np.where(draw < 0.025, 0, np.where(draw < 0.05, 2, 1)).astype(np.int32)

    def encode() -> bytes:
        out = Writer()
        write_symbols(out, symbols, 3)
        return b"".join(out.chunks)

    encoding, data = best(encode, repeats)
    decoding, back = best(lambda: read_symbols(Reader(memoryview(data)), size, 3), repeats)
    assert (back == symbols).all()
    rate = size / 1e6
    return {"encode": rate / encoding, "decode": rate / decoding, "ratio": 4 * size / len(data)}


def table(results: dict[str, dict[str, float]]) -> str:
    """Results as Markdown, targets beside them."""
    lines = [
        "| codec | encode, M/s | decode, M/s | target | ratio to float32 |",
        "|---|---|---|---|---|",
    ]
    for name, r in results.items():
        target = f"{TARGETS[name]:g}" if name in TARGETS else ""
        lines.append(
            f"| {name} | {r['encode']:.0f} | {r['decode']:.0f} | {target} | {r['ratio']:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.codecs", description=__doc__)
    parser.add_argument("--size", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[*CASES, "ANS, ternary"])
    parser.add_argument("--out", type=Path, help="write a JSON file")
    arguments = parser.parse_args()
    results = {
        name: measure_ans(arguments.size, arguments.repeats)
        if name == "ANS, ternary"
        else measure(CASES[name], arguments.size, arguments.repeats)
        for name in arguments.only
    }
    print(table(results))
    if arguments.out:
        record = {"machine": machine.facts(), "size": arguments.size, "codecs": results}
        arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
