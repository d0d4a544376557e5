"""The section ``sweep``: which values of which keys are tried, as overrides of the scenario.

sweep:
  grid: {codec.up.density: [0.1, 0.01], client.learning_rate: [0.05, 0.1]}      # 4 trials
sweep:
  trials: 20
  random: {client.learning_rate: {low: 0.001, high: 1.0, log: true}, strategy: [fedavg, fedadam]}
"""

from __future__ import annotations

import itertools
import json
import math
from typing import Any, Self

import numpy as np
from pydantic import Field, PositiveInt, model_validator

from fedsim.errors import ScenarioError
from fedsim.layers import depth
from fedsim.sections import Section
from fedsim.seeds import Seeds

Values = dict[str, Any]
"""One trial's values, by dotted key."""
OWN_KEYS = {
    "extends": "Sweep over the keys that the parent sets",
    "name": "All trials of a sweep lie in one folder, which has the scenario's name",
    "seed": "Write 'seeds: [0, 1, 2]' in the scenario: each trial is repeated with each of them",
    "seeds": "Write 'seeds: [0, 1, 2]' in the scenario: each trial is repeated with each of them",
    "sweep": "A sweep cannot change itself",
}
"""Keys over which no sweep can go, and what to do instead."""


class Range(Section):
    """Numbers to draw from; whole ones if both ends are whole."""

    low: int | float
    high: int | float
    """The largest number that can be drawn."""
    log: bool = False
    """Draw uniformly in the logarithm."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low < self.high or not all(map(math.isfinite, (self.low, self.high))):
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        if self.log and self.low <= 0:
            raise ValueError(f"low ({self.low}) must be positive where log is true")
        return self

    def draw(self, generator: np.random.Generator) -> int | float:
        """One number.

        >>> Range(low=2, high=4).draw(Seeds(0).numpy("x"))
        3
        """
        low, high = self.low, self.high
        whole = isinstance(low, int) and isinstance(high, int)
        if not self.log:
            whole_draw = generator.integers(math.ceil(low), math.floor(high), endpoint=True)
            return int(whole_draw) if whole else float(generator.uniform(low, high))
        drawn = math.exp(generator.uniform(math.log(low), math.log(high)))
        drawn = min(max(drawn, low), high)  # rounding
        return round(drawn) if whole else float(f"{drawn:.6g}")


class SweepSection(Section):
    """Trials of `fedsim sweep`; `fedsim run` plays the scenario as it is without them."""

    grid: dict[str, list[Any]] = Field(default={})
    """Lists of values by dotted key; every combination is a trial."""
    random: dict[str, list[Any] | Range] = Field(default={})
    """Lists to choose from, or ranges ``{low, high, log}``, by dotted key; with ``trials``."""
    trials: PositiveInt | None = None
    """How many random trials."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if bool(self.grid) == bool(self.random):
            raise ScenarioError("give exactly one of 'grid' and 'random'", key=("sweep",))
        if bool(self.random) != (self.trials is not None):
            raise ScenarioError("'trials' goes with 'random', and the other way", key=("sweep",))
        kind, keys = ("grid", self.grid) if self.grid else ("random", self.random)
        for key, values in keys.items():
            first = key.split(".")[0]
            if first in OWN_KEYS:
                what = f"'{key}' cannot be swept over"
                raise ScenarioError(what, key=("sweep", kind, key), hint=OWN_KEYS[first])
            if values == []:
                raise ScenarioError(f"'{key}' has no values", key=("sweep", kind, key))
        return self

    def values(self, seeds: Seeds) -> list[Values]:
        """The values of each trial, in order.

        >>> SweepSection(grid={"a": [1, 2], "b": [3]}).values(Seeds(0))
        [{'a': 1, 'b': 3}, {'a': 2, 'b': 3}]
        """
        if self.grid:
            return [
                dict(zip(self.grid, v, strict=True)) for v in itertools.product(*self.grid.values())
            ]
        return [
            {key: _drawn(of, seeds.numpy("sweep", i, key)) for key, of in self.random.items()}
            for i in range(self.trials or 0)
        ]


def _drawn(options: list[Any] | Range, generator: np.random.Generator) -> Any:
    if isinstance(options, Range):
        return options.draw(generator)
    return options[int(generator.integers(len(options)))]


def as_overrides(values: Values) -> list[str]:
    """A trial's values as they would be written on the command line, names before their options.

    >>> as_overrides({"codec.up.density": 0.1, "codec.up": "topk"})
    ['codec.up="topk"', 'codec.up.density=0.1']
    """
    return [f"{key}={json.dumps(values[key])}" for key in sorted(values, key=depth)]
