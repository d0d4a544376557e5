"""When clients can take part: processes that are pure functions of seed, client and time.

Nothing is simulated step by step and nothing is remembered for a client: the state of any client at
any time is computed when it is asked for, for many clients at once. Slotted processes hold their
state for ``slot_s`` seconds of virtual time; without ``slot_s`` a slot is a round.

Markov chains are sampled exactly by looking back from the slot asked for (J. G. Propp,
D. B. Wilson, "Exact sampling with coupled Markov chains", 1996): each slot has one uniform draw of
its own, and most draws decide the state whatever it was before.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Discriminator, Field, NonNegativeFloat, PositiveFloat, PositiveInt

from fedsim.sections import Section
from fedsim.seeds import Seeds

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Probability = Annotated[float, Field(gt=0.0, le=1.0)]
DAY_S = 86400.0
LOOK_AHEAD = 64
"""Slots that are looked at together in search of the next change."""
HORIZON = 100_000
"""A state that holds for this many slots counts as lasting for ever."""


@dataclass(frozen=True)
class Context:
    """What a process may depend on beside its options.

    Attributes:
        seeds: Streams of the run.
        rates: Share of time of each client, where it was derived from clients' data.
    """

    seeds: Seeds
    rates: Floats | None = None


class Process(Section):
    """What every process can tell."""

    @property
    def by_round(self) -> bool:
        """Whether time is counted in rounds: nobody comes or goes within one."""
        return False

    @abstractmethod
    def available(self, clients: Ids, time: float | Floats, context: Context) -> Bools:
        """Whether clients are available at a time (in seconds, or a round's number from 0).

        Each client may be asked for a time of its own.
        """

    @abstractmethod
    def change(self, client: int, time: float, context: Context) -> float:
        """When the state that the client has at ``time`` ends; infinity if it lasts."""


class Always(Process):
    """Every client, at all times."""

    name: Literal["always"] = "always"

    def available(self, clients: Ids, time: float | Floats, context: Context) -> Bools:
        """All of them."""
        return np.ones(len(clients), dtype=np.bool_)

    def change(self, client: int, time: float, context: Context) -> float:
        """Never."""
        return math.inf


class Slotted(Process):
    """A process in slots; subclasses say who is on in which slot."""

    slot_s: PositiveFloat | None = None
    """Length of a slot in virtual seconds; by default, a slot is a round."""

    @property
    def by_round(self) -> bool:
        """Without a length, a slot is a round."""
        return self.slot_s is None

    @abstractmethod
    def on(self, clients: Ids, slots: Ids, context: Context) -> Bools:
        """Whether each client is available in the slot given beside it."""

    def available(self, clients: Ids, time: float | Floats, context: Context) -> Bools:
        """Looks the slot up."""
        return self.on(clients, np.broadcast_to(self._slot(time), clients.shape), context)

    def change(self, client: int, time: float, context: Context) -> float:
        """Looks at the slots that follow."""
        slot = int(self._slot(time))
        now = self.on(np.array([client]), np.array([slot]), context)[0]
        for start in range(slot + 1, slot + HORIZON, LOOK_AHEAD):
            slots = np.arange(start, start + LOOK_AHEAD)
            changed = np.flatnonzero(self.on(np.full(LOOK_AHEAD, client), slots, context) != now)
            if len(changed):
                return float(slots[changed[0]]) * (self.slot_s or 1.0)
        return math.inf

    def _slot(self, time: float | Floats) -> Ids:
        return np.floor(np.asarray(time) / (self.slot_s or 1.0) * (1 + 1e-12)).astype(np.int64)


class Rated(Slotted):
    """A process in which each client has its own share of time.

    ``label_alpha`` makes the share depend on the client's labels: ``p_n`` is proportional to
    ``<labels of n, phi>`` with ``phi ~ Dirichlet(label_alpha)``, scaled to the mean ``rate`` and
    kept within ``min_rate`` and 1 (S. Wang, M. Ji, ICLR 2024, https://arxiv.org/abs/2306.03401).
    """

    rate: Probability = 0.1
    """Share of time that a client is available; with ``label_alpha``, the mean over clients."""
    rates: tuple[Probability, ...] = ()
    """Instead, shares by client; the list starts again where it ends."""
    label_alpha: PositiveFloat | None = None
    label_column: str = "label"
    min_rate: Probability = 0.02

    def share(self, clients: Ids, context: Context) -> Floats:
        """Share of time of each client."""
        if self.rates:
            return np.asarray(self.rates)[clients % len(self.rates)]
        if context.rates is not None:
            return context.rates[clients]
        return np.full(len(clients), self.rate)


class Bernoulli(Rated):
    """In every slot anew, with probability ``rate``."""

    name: Literal["bernoulli"]

    def on(self, clients: Ids, slots: Ids, context: Context) -> Bools:
        """One draw for each client and slot."""
        draws = context.seeds.uniforms("available", clients, slots)
        return draws < self.share(clients, context)


class Markov(Rated):
    """Two states with memory: off clients come with ``turn_on``, on clients go so that the share is
    ``rate``; where that would need more than 1, both are scaled down."""

    name: Literal["markov"]
    turn_on: Probability = 0.05
    """Probability that an absent client is there in the next slot."""

    def on(self, clients: Ids, slots: Ids, context: Context) -> Bools:
        """The stationary chain, looked back from the slot asked for."""
        share = self.share(clients, context)
        turn_off = self.turn_on * (1 / share - 1)
        scale = np.maximum(1.0, turn_off)

        def odds(who: Ids, at: Ids) -> tuple[Floats, Floats, Floats]:
            return share[who], 1 - (turn_off / scale)[who], (self.turn_on / scale)[who]

        return _look_back(clients, slots, odds, context.seeds)


class Diurnal(Slotted):
    """Day and night: the share of available clients follows the local hour, in sessions.

    ``a(t) = mean * (1 + swing * cos(2 pi (t - peak) / 24 h))``. Sessions end with the same
    probability in every slot (mean length ``session_h``); they begin so that the share is ``a(t)``.
    The defaults are ours: night to day about 4:1 is from memory of production systems; the 1,000
    phones of FLASH's state trace charged 16 % of the time on average, half of them less than 11 %
    (a ``sigma`` of about 0.9).
    """

    name: Literal["diurnal"]
    slot_s: PositiveFloat = 600.0
    mean: Probability = 0.15
    """Share of time over the day."""
    swing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.6
    peak_h: Annotated[float, Field(ge=0.0, lt=24.0)] = 2.5
    """Local hour at which most clients are available."""
    session_h: PositiveFloat = 1.5
    time_zones_h: Annotated[
        tuple[Annotated[float, Field(ge=-12.0, le=14.0)], ...], Field(min_length=1)
    ] = (0.0,)
    """Offsets from the server's clock; clients are spread evenly over them."""
    sigma: NonNegativeFloat = 0.0
    """Standard deviation of the logarithm of ``mean`` over clients."""

    def level(self, clients: Ids, slots: Ids, context: Context) -> Floats:
        """The share ``a`` of each client in a slot."""
        zones = np.asarray(self.time_zones_h)
        draws = context.seeds.uniforms("time zone", clients)
        local_s = slots * self.slot_s + zones[(draws * len(zones)).astype(int)] * 3600.0
        wave = 1 + self.swing * np.cos(2 * np.pi * (local_s - self.peak_h * 3600) / DAY_S)
        mean = np.full(len(clients), self.mean)
        if self.sigma:
            normal = context.seeds.normals("presence", clients)
            mean = mean * np.exp(self.sigma * normal - self.sigma**2 / 2)
        return np.asarray(np.clip(mean * wave, 0.0, 0.95))

    def on(self, clients: Ids, slots: Ids, context: Context) -> Bools:
        """A chain whose odds follow the hour, looked back from the slot asked for."""
        leave = min(1.0, self.slot_s / (self.session_h * 3600))

        def odds(who: Ids, at: Ids) -> tuple[Floats, Floats, Floats]:
            level = self.level(clients[who], at, context)
            before = self.level(clients[who], at - 1, context)
            come = np.clip((level - before * (1 - leave)) / (1 - before), 0.0, 1.0)
            return level, np.full(len(who), 1 - leave), come

        return _look_back(clients, slots, odds, context.seeds)


class Cyclic(Rated):
    """In every period of slots, once for ``round(rate * period)`` slots in a row; clients begin at
    random places of their period."""

    name: Literal["cyclic"]
    period: PositiveInt = 100
    """Slots."""

    def on(self, clients: Ids, slots: Ids, context: Context) -> Bools:
        """Whether the slot lies in the client's turn."""
        offset = (context.seeds.uniforms("cycle", clients) * self.period).astype(np.int64)
        turn = np.maximum(1, np.round(self.share(clients, context) * self.period))
        return (slots + offset) % self.period < turn


class Recorded(Process):
    """As recorded on real devices, over and over; see `fedsim convert-trace`."""

    name: Literal["trace"]
    file: str
    """JSON in FedScale's form: by device, ``active`` and ``inactive`` times and ``finish_time``."""
    random_start: bool = False
    """Let every client begin at a random place of its trace."""

    def available(self, clients: Ids, time: float | Floats, context: Context) -> Bools:
        """Looks each client's place in its trace up."""
        times = np.broadcast_to(time, clients.shape)
        pairs = zip(clients, times, strict=True)
        states = (self._find(int(c), float(t), context)[0] for c, t in pairs)
        return np.fromiter(states, np.bool_, len(clients))

    def change(self, client: int, time: float, context: Context) -> float:
        """The next recorded change."""
        return self._find(client, time, context)[1]

    def _find(self, client: int, time: float, context: Context) -> tuple[bool, float]:
        from fedsim.devices import traces

        recorded = traces.presence(self.file)
        one = recorded[client % len(recorded)]
        shift = 0.0
        if self.random_start:
            shift = float(context.seeds.uniforms("trace start", client)) * one.period_s
        is_on, end = one.at(time + shift)
        return is_on, max(end - shift, math.nextafter(time, math.inf))


Availability = Annotated[
    Always | Bernoulli | Markov | Diurnal | Cyclic | Recorded, Discriminator("name")
]


def label_rates(counts: NDArray[np.int64], process: Rated, seeds: Seeds) -> Floats:
    """Clients' shares of time from the labels they own (``counts``: clients x labels)."""
    assert process.label_alpha is not None
    labels = counts / counts.sum(axis=1, keepdims=True)
    phi = seeds.numpy("participation").dirichlet(np.full(counts.shape[1], process.label_alpha))
    weight = labels @ phi
    return np.asarray(np.clip(weight * process.rate / weight.mean(), process.min_rate, 1.0))


Odds = Callable[[Ids, Ids], tuple[Floats, Floats, Floats]]
"""For places in the list of clients and their slots: share of time, chance to stay, chance to
come."""


def _look_back(clients: Ids, slots: Ids, odds: Odds, seeds: Seeds) -> Bools:
    """State of two-state chains: go back until a slot's draw decides without its past."""
    state = np.zeros(len(clients), dtype=np.bool_)
    flipped = np.zeros(len(clients), dtype=np.bool_)
    at = slots.astype(np.int64).copy()
    todo = np.arange(len(clients))
    while len(todo):
        draw = seeds.uniforms("available", clients[todo], at[todo])
        share, stay, come = odds(todo, at[todo])
        first = at[todo] <= 0
        decided = first | (draw < np.minimum(stay, come)) | (draw >= np.maximum(stay, come))
        value = np.where(first, draw < share, draw < stay)
        state[todo[decided]] = (value ^ flipped[todo])[decided]
        flipped[todo] ^= come > stay  # here the draw turns either state into the other
        todo = todo[~decided]
        at[todo] -= 1
    return state


def advance(
    work_s: Sequence[float], start: float, change: Callable[[float], tuple[bool, float]]
) -> list[float]:
    """When stages of work end, one after the other, if only available time counts.

    Args:
        work_s: Length of each stage.
        start: When the first begins.
        change: For a time, whether the client is available then, and when that ends.
    """
    ends = []
    time = start
    for left in work_s:
        while left > 0:
            is_on, until = change(time)
            if is_on and time + left <= until:
                time, left = time + left, 0.0
            elif math.isinf(until):
                time, left = (time + left, 0.0) if is_on else (math.inf, 0.0)
            else:
                left -= (until - time) if is_on else 0.0
                time = until
        ends.append(time)
    return ends
