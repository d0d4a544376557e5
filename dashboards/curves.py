"""Numbers of runs as curves: columns by round, running totals, means over seeds, thinning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedsim.results import Run

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
MAX_DRAWN = 10_000
"""Points of one subplot; beyond it, lines are thinned."""
LEAST_DRAWN = 40
"""Points that a line keeps however many there are."""


@dataclass(frozen=True, eq=False)
class Column:
    """A quantity of one run by round, in the order of rounds; NaN where the run wrote null."""

    rounds: Ints
    values: Floats

    @classmethod
    def of(cls, rounds: ArrayLike, values: ArrayLike) -> Column:
        """From plain sequences."""
        return cls(np.asarray(rounds, np.int64), np.asarray(values, np.float64))

    def since(self, first: int) -> Column:
        """Without the rounds before ``first``: 1 leaves out the state before training."""
        kept = self.rounds >= first
        return self if kept.all() else Column(self.rounds[kept], self.values[kept])

    def finite(self) -> Column:
        """Without what is not finite."""
        kept = np.isfinite(self.values)
        return self if kept.all() else Column(self.rounds[kept], self.values[kept])

    def at(self, rounds: Ints) -> Floats:
        """Values at some rounds, NaN where there is none."""
        if np.array_equal(rounds, self.rounds):
            return self.values
        result = np.full(len(rounds), np.nan)
        _, here, there = np.intersect1d(rounds, self.rounds, return_indices=True)
        result[here] = self.values[there]
        return result

    @cached_property
    def known(self) -> bool:
        """Whether there is any number in it."""
        return bool(np.isfinite(self.values).any())

    @cached_property
    def positive(self) -> bool:
        """Whether any number in it is above 0."""
        return bool((self.values > 0).any())


def by_round(run: Run, key: str) -> Column:
    """A column of rounds.jsonl; empty where the run has none. Read once per run and key."""
    kept: dict[str, Column] = run.__dict__.setdefault("_columns", {})
    if key not in kept:
        rounds, values = run.columns.get(key, ([], []))
        order = np.argsort(rounds, kind="stable")
        numbers = _numbers(values)
        kept[key] = Column(np.asarray(rounds, np.int64)[order], numbers[order])
    return kept[key]


def _numbers(values: Sequence[object]) -> Floats:
    """Values of records; what is no finite number (in a file of another version, say) is NaN."""
    try:
        numbers = np.array(values, float)
        if numbers.ndim > 1:  # lists of one length
            raise ValueError
    except (TypeError, ValueError):
        numbers = np.array([v if isinstance(v, int | float) else np.nan for v in values], float)
    return np.where(np.isfinite(numbers), numbers, np.nan)


def cumulative(run: Run, *keys: str) -> Column:
    """Running total of the sum of some columns, over all rounds of the run; kept with the run."""
    kept: dict[tuple[str, ...], Column] = run.__dict__.setdefault("_totals", {})
    if keys not in kept:
        rounds = np.unique(by_round(run, "round").rounds)
        columns = [np.nan_to_num(by_round(run, key).at(rounds)) for key in keys]
        kept[keys] = Column(rounds, np.cumsum(np.sum(columns, axis=0)))
    return kept[keys]


@dataclass(frozen=True)
class Curve:
    """Means over seeds, point by point; ``n`` is the number of seeds behind each point."""

    x: Floats
    mean: Floats
    low: Floats
    high: Floats
    n: Ints

    def at(self, places: Sequence[int] | Ints | NDArray[np.bool_]) -> Curve:
        """The same with some of its points."""
        kept = np.asarray(places, None if len(places) else np.int64)
        return Curve(self.x[kept], self.mean[kept], self.low[kept], self.high[kept], self.n[kept])


def curve(
    runs: Sequence[Run],
    y: Callable[[Run], Column],
    x: Callable[[Run], Column] | None = None,
) -> Curve:
    """Mean and range of ``y`` over runs, at the mean ``x`` of each round (the round by default).

    A point is the mean of those runs that have this round; a NaN in one of them makes a gap.
    """
    ys = [y(run) for run in runs]
    return combined([x(run) for run in runs] if x else [rounds_of(own) for own in ys], ys)


def rounds_of(column: Column) -> Column:
    """The rounds of a column as a quantity."""
    return Column(column.rounds, column.rounds.astype(float))


def combined(xs: Sequence[Column], ys: Sequence[Column]) -> Curve:
    """The curve of given columns, one of each kind per run; see ``curve``."""
    if len(ys) == 1:
        mean = ys[0].values
        ones = np.ones(len(mean), np.int64)
        return Curve(xs[0].at(ys[0].rounds), mean, mean, mean, ones)
    rounds = np.unique(np.concatenate([own.rounds for own in ys] or [np.zeros(0, np.int64)]))
    if not len(rounds):
        nothing = np.zeros(0)
        return Curve(nothing, nothing, nothing, nothing, rounds)
    there = np.stack([np.isin(rounds, own.rounds) for own in ys])
    heights = np.stack([own.at(rounds) for own in ys])
    widths = np.stack([own.at(rounds) for own in xs])
    n = there.sum(0)
    return Curve(
        np.where(there, widths, 0).sum(0) / n,
        np.where(there, heights, 0).sum(0) / n,
        np.where(there, heights, np.inf).min(0),
        np.where(there, heights, -np.inf).max(0),
        n,
    )


def most_points(lines: int) -> int:
    """Points that each of some lines in one subplot may have.

    >>> most_points(1), most_points(200), most_points(10_000)
    (10000, 50, 40)
    """
    return max(LEAST_DRAWN, MAX_DRAWN // max(1, lines))


def thinning(heights: Floats, most: int) -> Ints:
    """Places of at most ``most`` points: the first, the last, and extremes between them.

    The rest is cut into equal stretches; of each, the lowest and the highest point are kept. A gap
    (NaN) stays where a stretch has nothing else.

    >>> thinning(np.array([1.0, 9, 2, 0, 3, 4]), 4)
    array([0, 1, 3, 5])
    """
    if len(heights) <= most:
        return np.arange(len(heights))
    inner = np.asarray(heights, float)[1:-1]
    stretches = max(1, (most - 2) // 2)
    width = -(-len(inner) // stretches)
    padded = np.full(width * stretches, np.nan)
    padded[: len(inner)] = inner
    table = padded.reshape(stretches, width)
    lowest = np.where(np.isnan(table), np.inf, table).argmin(1)
    highest = np.where(np.isnan(table), -np.inf, table).argmax(1)
    starts = 1 + width * np.arange(stretches)
    kept = np.concatenate([[0], starts + lowest, starts + highest, [len(heights) - 1]])
    return np.unique(kept[kept < len(heights)])


MOST_MEANS = 150
"""Points of a line of single rounds in a small figure; longer ones are averaged."""


def averaged(points: Curve, most: int = MOST_MEANS) -> Curve:
    """Means over at most ``most`` stretches of neighbouring points, with the range of each.

    Numbers of single rounds go up and down, and a line through thousands of them is a blot. A gap
    (NaN) stays where a stretch has nothing else.
    """
    if len(points.x) <= 2 * most:
        return points
    starts = np.arange(most) * len(points.x) // most
    known = np.isfinite(points.mean)
    numbers = np.add.reduceat(known, starts)
    sums = np.add.reduceat(np.where(known, points.mean, 0.0), starts)
    lengths = np.diff([*starts, len(points.x)])
    return Curve(
        np.add.reduceat(points.x, starts) / lengths,
        np.divide(sums, numbers, out=np.full(most, np.nan), where=numbers > 0),
        np.fmin.reduceat(points.low, starts),
        np.fmax.reduceat(points.high, starts),
        np.minimum.reduceat(points.n, starts),
    )


AVERAGING = (
    f"Lines of more than {2 * MOST_MEANS} points are drawn as {MOST_MEANS} means over neighbouring "
    "ones; where they are shaded, it is from the lowest to the highest."
)
"""The rule of ``averaged``, for the page."""
THINNING = (
    "Lines of more than {most} points are thinned: of equal stretches of rounds, the lowest and "
    "the highest point are drawn, with the first and the last of the line."
)
"""The rule of ``thinning``, for the page."""
