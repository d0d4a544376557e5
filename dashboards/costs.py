"""What a run had spent by each round: bytes, virtual and wall time, energy; and scores to compare.

Panels that weigh the score against a cost share these definitions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedsim.dashboards.curves import Column, by_round, cumulative
from fedsim.dashboards.drawing import Group
from fedsim.results import Run
from fedsim.units import human_bytes, human_energy, human_time


@dataclass(frozen=True)
class Cost:
    """A running total that runs are compared by.

    Attributes:
        name: On buttons.
        axis: On axes.
        unit: Suffix of SI numbers on axes and on hover.
        keys: Columns of rounds.jsonl that add up to it.
        human: Rounded for reading.
    """

    name: str
    axis: str
    unit: str
    keys: tuple[str, ...]
    human: Callable[[float | None], str]

    def so_far(self, run: Run) -> Column:
        """The total after each round; empty where the run never measured it."""
        if not any(by_round(run, key).known for key in self.keys):
            return Column.of([], [])
        return cumulative(run, *self.keys)


UP, DOWN = "comm/up_bytes", "comm/down_bytes"
BYTES = Cost("bytes", "bytes sent, up + down, all clients", "B", (UP, DOWN), human_bytes)
UP_BYTES = Cost("bytes up", "bytes sent by all clients to the server", "B", (UP,), human_bytes)
DOWN_BYTES = Cost(
    "bytes down", "bytes sent by the server to all clients", "B", (DOWN,), human_bytes
)
VIRTUAL = Cost("virtual time", "virtual time on the devices", "s", ("time/virtual_s",), human_time)
WALL = Cost("wall time", "wall time of the simulation", "s", ("time/wall_s",), human_time)
ENERGY = Cost("energy", "energy of all clients", "J", ("energy/joules",), human_energy)
COSTS = (BYTES, UP_BYTES, DOWN_BYTES, VIRTUAL, WALL, ENERGY)


def scores(run: Run) -> Column:
    """The score that the run is judged by, at each evaluation; NaN where it was not finite."""
    return by_round(run, run.key_metric[0])


def best(values: Sequence[float], mode: str) -> float:
    """The best of some scores; ``mode`` is ``min`` or ``max``."""
    return min(values) if mode == "min" else max(values)


def comparable(drawn: Sequence[Group]) -> tuple[list[Group], str]:
    """Groups judged by the commonest metric that have been evaluated; and who else was left out."""
    scored = [group for group in drawn if any(scores(run).known for run in group.runs)]
    metrics = Counter(group.runs[0].key_metric for group in scored)
    if len(metrics) < 2:
        return scored, ""
    (name, mode), _ = metrics.most_common(1)[0]
    kept = [group for group in scored if group.runs[0].key_metric == (name, mode)]
    others = len(scored) - len(kept)
    return kept, f"Left out: {others} of {len(scored)} runs, which are not judged by {name}."
