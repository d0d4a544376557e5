"""``python -m tests.bench.zeroth``: what a zeroth-order step costs beside forward passes.

A BERT of MiniLM's shape (6 layers of width 384, 22.7 million parameters, all of them trained unless
``--upper`` says so), random weights, one thread. Memory is the growth of the largest resident set.
"""

from __future__ import annotations

import argparse
import resource
from types import SimpleNamespace

import numpy as np
import torch

from fedsim.client import Client
from fedsim.clients._zeroth import Walker, forward_only
from fedsim.directions import Directions, Kind
from tests.bench.directions import bert, seconds

UPPER = ("bert.encoder.layer.4.", "bert.encoder.layer.5.", "classifier.")


def client(rows: int, tokens: int, upper: bool) -> tuple[Client, dict[str, torch.Tensor]]:
    """A client around a model of MiniLM's shape, and a batch."""
    torch.manual_seed(0)
    model = bert()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not upper or name.startswith(UPPER))
    batch = {
        "input_ids": torch.randint(0, 30_000, (rows, tokens)),
        "labels": torch.zeros(rows).long(),
    }
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    task = SimpleNamespace(model=model, parameters=trained, loss=lambda b: model(**b).loss)
    view = Client(0, 1, 1, task, {}, {}, {}, torch.Generator())  # type: ignore[arg-type]
    return view, batch


def peak_mb() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Print times of a forward pass and of a step, and their ratio."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.zeroth", description=__doc__)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--upper", action="store_true", help="two layers, as fedkseed_minilm has")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    view, batch = client(arguments.rows, arguments.tokens, arguments.upper)

    def forward() -> None:
        view.loss(batch).item()

    with forward_only(view):
        seconds([forward], arguments.repeats)
        Directions(1).values(0)  # its compiled code and compiler take 115 MB, once
        before = peak_mb()
        kinds: tuple[Kind, ...] = ("gaussian", "rademacher")
        for kind in kinds:
            walker = Walker(view, kind, 1e-3, exact=False)

            def step(w: Walker = walker) -> None:
                above, below = w.probe(batch, 7)
                w.move({7: -1e-6 * (above - below)})

            times = np.array(seconds([forward, step], arguments.repeats))
            alone, cost = np.median(times, axis=0)
            ratio = np.median(times[:, 1] / times[:, 0])
            print(
                f"{arguments.rows} x {arguments.tokens} tokens, {kind:10}: forward "
                f"{alone:.3f} s, step {cost:.3f} s = {ratio:.2f} forward passes in the same turn; "
                f"peak {before:.0f} MB forward, {peak_mb():.0f} MB with steps"
            )


if __name__ == "__main__":
    main()
