"""``python -m tests.bench.studies``: two studies of codecs without a federated run.

lgreco RUN     bytes of L-GreCo's plan against the best uniform setting at equal error, on the
               change of the weights between a run's last two checkpoints
fedzip FOLDER  ratio and choice of encoding by kept share, on the update of one client that
               trains FedZip's CNN on 600 digits of MNIST for five epochs
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from fedsim import trees
from fedsim.arrays import Arrays, subtract
from fedsim.chain import build_chain
from fedsim.codecs import _labels
from fedsim.codecs.fedzip import FedZip
from fedsim.lgreco import solve, tables

SETTINGS: dict[str, tuple[str, tuple[float, ...], dict[str, Any]]] = {
    "topk": ("density", (0.01, 0.05, 0.1), {"per_layer": True}),
    "qsgd": ("bits", (3, 4, 5), {}),
    "powersgd": ("rank", (2, 4, 8), {}),
}
KEPT = (1.0, 0.2, 0.05, 0.01, 0.001)


def last_change(run: Path) -> Arrays:
    """Newest weights minus those of the checkpoint before."""
    before, after = sorted((run / "checkpoints").glob("round-*"))[-2:]
    return subtract(trees.load(after)["weights"], trees.load(before)["weights"])


def compare_plans(update: Arrays) -> None:
    """Print a line for each reference: its bytes, and the plan's for both kinds of error."""
    rows = np.arange(len(update))
    for name, (option, references, more) in SETTINGS.items():
        for reference in references:
            codec = build_chain([{"name": name, option: reference, **more}])
            sizes, errors = tables(codec, update)
            own = int(np.abs(np.asarray(codec.candidates()) - reference).argmin())
            whole = sizes[:, own].sum()
            shares = []
            for power in (1, 2):
                costs = errors**power
                plan = solve(sizes, costs, float(costs[:, own].sum()))
                shares.append(1 - sizes[rows, plan].sum() / whole if plan else 0.0)
            print(f"{name} {reference:g}: {whole:.0f} B, saved {shares[0]:.1%}, {shares[1]:.1%}")


def client_update(folder: Path) -> Arrays:
    """What RMSprop with rate 0.001 and batches of ten changes."""
    import torch

    from fedsim.data.embedded import idx_files, read_idx
    from fedsim.models.cnn import simple_cnn

    torch.manual_seed(0)
    rows = read_idx({"train": idx_files(str(folder))["train"]})["train"].select(range(600))
    x = torch.tensor(np.array(rows["image"]), dtype=torch.float32)[:, None] / 255
    y = torch.tensor(np.array(rows["label"]))
    model = simple_cnn(channels=1, image_size=28)
    before = {n: p.detach().numpy().copy() for n, p in model.named_parameters()}
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    for start in [*range(0, len(x), 10)] * 5:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(
            model(x[start : start + 10]), y[start : start + 10]
        )
        loss.backward()
        optimizer.step()
    return subtract({n: p.detach().numpy() for n, p in model.named_parameters()}, before)


def encodings(update: Arrays) -> None:
    """Print a line for each kept share: ratio, error, and the encoding of each array."""
    size = sum(x.size for x in update.values())
    energy = sum(float((x**2).sum()) for x in update.values())
    for kept in KEPT:
        codec = FedZip(kept=kept)
        payload = codec.encode(update, {})
        decoded = codec.decode(payload, update)
        lost = sum(float(((update[n] - decoded[n]) ** 2).sum()) for n in update) / energy
        chosen = []
        for x in (x for x in update.values() if x.size >= codec.min_size):
            labels, centroids = codec._quantised(x)
            bits = _labels.encoded_bits(labels, len(centroids))
            chosen.append(_labels.NAMES[min(bits, key=lambda e: bits[e])])
        print(f"{kept:g}: {4 * size / payload.num_bytes:.1f} x, lost {lost:.3f}, {chosen}")


def main() -> None:
    """Run one study."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.studies", description=__doc__)
    parser.add_argument("study", choices=["lgreco", "fedzip"])
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    if arguments.study == "lgreco":
        compare_plans(last_change(arguments.folder))
    else:
        encodings(client_update(arguments.folder))


if __name__ == "__main__":
    main()
