"""What the numbers that methods report mean: titles, units, and the order of their subplots."""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.dashboards.axes import UNITS


@dataclass(frozen=True)
class Quantity:
    """How a key of rounds.jsonl is shown.

    Attributes:
        title: What it is about, and of that which number.
        axis: The unit.
        entry: For lists, what their entries are numbered by.
    """

    title: str
    axis: str
    entry: str = "entry"


_NORM, _SHARE, _SEEDS = "L2 norm", "share of the update's norm", "seeds"
KNOWN = {
    "privacy/epsilon": Quantity("Privacy: spent so far", "epsilon"),
    "agg/update_norm": Quantity("Updates: clients' mean length", _NORM),
    "agg/update_norm_max": Quantity("Updates: the longest", _NORM),
    "agg/mean_norm": Quantity("Updates: their mean", _NORM),
    "agg/step_norm": Quantity("Updates: step of the server", _NORM),
    "agg/cosine": Quantity("Updates: cosine to their mean", "1 = all the same way"),
    "agg/compression_error": Quantity("Codec: lost on the way", _SHARE),
    "agg/decoded_norm": Quantity("Codec: length after decoding", _NORM),
    "agg/residual_norm": Quantity("Feedback: server still lacks", _SHARE),
    "agg/down_residual_norm": Quantity("Feedback: clients still lack", "share of the weights'"),
    "agg/plan_min": Quantity("L-GreCo: smallest choice", "density, bits or rank"),
    "agg/plan_mean": Quantity("L-GreCo: mean over arrays", "density, bits or rank"),
    "agg/plan_max": Quantity("L-GreCo: largest choice", "density, bits or rank"),
    "agg/momentum_norm": Quantity("Server: momentum", _NORM),
    "agg/second_moment_norm": Quantity("Server: second moment", _NORM),
    "agg/memory_norm": Quantity("Server: mean of its memory", _NORM),
    "agg/staleness_gap": Quantity("Server: gap of a late update", "divisor"),
    "agg/clipped_share": Quantity("Server: clipped momentum", "share of entries"),
    "agg/weight_min": Quantity("Clients' weights: smallest", "weight"),
    "agg/weight_mean": Quantity("Clients' weights: mean", "weight"),
    "agg/weight_max": Quantity("Clients' weights: largest", "weight"),
    "agg/drawn_seeds": Quantity("Seeds: effective number drawn", _SEEDS),
    "agg/probable_seeds": Quantity("Seeds: effective number, by odds", _SEEDS),
    "agg/drawn_tenths": Quantity(
        "Seeds: draws of the whole run", "share of draws", "tenth of the pool, most drawn first"
    ),
    "train/mean_abs_scalar": Quantity("Slopes: mean size", "loss per unit of length"),
    "train/max_abs_scalar": Quantity("Slopes: mean of clients' largest", "loss per unit of length"),
    "train/dropped_steps": Quantity("Slopes: dropped steps", "steps per client"),
    "train/replayed_seeds": Quantity("Seeds: replayed by a client", _SEEDS),
    "train/local_steps": Quantity("Clients: local steps", "steps per client"),
    "train/staleness": Quantity("Clients: staleness, by rows", "versions behind"),
}
"""By key, in the order in which they are drawn."""


def quantity(key: str) -> Quantity:
    """How a key is shown; one that is not known here, by its name, whose end carries its unit.

    >>> quantity("agg/cluster_moves")
    Quantity(title='agg/cluster_moves', axis='cluster moves', entry='entry')
    """
    last = key.rsplit("/", 1)[-1]
    if key.startswith("personal/"):
        return Quantity(f"Clients' own tests: {last}", UNITS.get(last, last))
    return KNOWN.get(key) or Quantity(key, last.replace("_", " "))


def place(key: str) -> tuple[bool, int, str]:
    """Sorts keys: those of privacy first, then known ones, then others by name."""
    known = list(KNOWN)
    known_at = known.index(key) if key in KNOWN else len(known)
    return not key.startswith("privacy/"), known_at, key
