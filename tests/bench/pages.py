"""How long the report page takes for many runs and for one wide run, and how large it is.

    python -m tests.bench.pages            # 200 runs of 500 rounds; 1,000 clients in 500 rounds
    python -m tests.bench.pages --shrink 10

Folders are written with made-up numbers first, which is not part of the times.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from fedsim.records import Record, identity, summarise
from fedsim.results import RunFolder
from tests.run_folders import scenario

STATUSES, SHARES = ("ok", "late", "failed", "oom"), (950, 40, 10, 3)


def main() -> None:
    """Write both inputs, then time `fedsim report` on each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shrink", type=int, default=1, help="divides runs and clients")
    shrink = parser.parse_args().shrink
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for i in range(200 // shrink):
            write(root / "many", f"m{i // 5}", clients=10, seed=i % 5, num_clients=100 + i // 5)
        write(root / "wide", "wide", clients=1000 // shrink, num_clients=100_000)
        for name in ("many", "wide"):
            measure(root / name, root / f"{name}.html")


def measure(runs: Path, page: Path) -> None:
    """Print seconds by the clock and of the processor, and megabytes of the page."""
    before, start = os.times(), time.perf_counter()
    command = [sys.executable, "-m", "fedsim", "report", str(runs), "-o", str(page)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - start, os.times()
    used = after.children_user + after.children_system
    used -= before.children_user + before.children_system
    size = page.stat().st_size / 1e6
    print(f"{runs.name}: {wall:.1f} s, {used:.1f} s of processor, {size:.1f} MB")


def write(root: Path, name: str, clients: int, num_rounds: int = 500, **values: int) -> None:
    """Write a run folder as the engine would; faster, since it is one write per file."""
    spec = scenario(name=name, num_rounds=num_rounds, **values)
    draw = random.Random(f"{name} {spec.seed}")
    folder = RunFolder.create(root, spec, None)
    records = [_round(n, clients, draw) for n in range(num_rounds + 1)]
    lines = (row for n in range(1, num_rounds + 1) for row in _clients(n, clients, spec, draw))
    for file, content in (("rounds.jsonl", records), ("clients.jsonl", lines)):
        with (folder.path / file).open("w") as opened:
            opened.writelines(f"{json.dumps(record)}\n" for record in content)
    summary = summarise(identity(spec), records, key_metric=("eval/accuracy", "max"))
    folder.finish(summary, "done")


def _round(n: int, clients: int, draw: random.Random) -> Record:
    on = int(n > 0)
    score = 1 - 0.9 * 0.5 ** (n / 50) + 0.02 * draw.random()
    return {
        "round": n,
        "eval/accuracy": score,
        "eval/loss": 2 * (1 - score),
        "train/loss": 2 * (1 - score),
        "clients/selected": clients * on,
        "clients/completed": clients * on - on,
        "clients/failed": on,
        "clients/retried": 0,
        "comm/up_bytes": on * 1_234_567,
        "comm/down_bytes": on * 2_345_678,
        "comm/up_values_bytes": on * 1_204_567,
        "comm/up_header_bytes": on * 30_000,
        "time/virtual_s": on * (50 + draw.random()),
        "energy/joules": on * (400 + draw.random()),
        "agg/update_norm": draw.random(),
        "time/wall_s": 1 + draw.random(),
        "mem/peak_bytes": 10**8 + n,
    }


def _clients(n: int, clients: int, spec: object, draw: random.Random) -> Iterator[Record]:
    for _ in range(clients):
        yield {
            "round": n,
            "stage": "train",
            "client": draw.randrange(spec.num_clients),  # type: ignore[attr-defined]
            "status": draw.choices(STATUSES, SHARES)[0],
            "num_examples": 40,
            "train_loss": draw.random(),
            "up_bytes": 166_028,
            "down_bytes": 165_720,
            "time/wall_s": 0.0931,
            "device": draw.choice(["phone-low", "phone-mid", "pixel-6"]),
            "time/virtual_s": 50 * draw.random(),
            "time/download_s": draw.random(),
            "time/compute_s": 40 * draw.random(),
            "time/upload_s": draw.random(),
            "energy/joules": draw.random(),
            "work/flops": 123_456_789,
            "mem/peak_bytes": 9_876_543,
        }


if __name__ == "__main__":
    main()
