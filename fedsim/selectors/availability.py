"""Prefers clients that will still be available when they are expected to finish.

    of margin * wanted available clients: first those with time left > predicted round trip,
    then those that stay longest

After the idea of J. Wolfrath et al., "HACCS", 2022, and A. M. Abdelmoniem et al., "REFL", EuroSys
2023, https://arxiv.org/abs/2111.01108, to look at clients' future presence; those predict it, here
the simulator knows it, so this is an upper bound. It favours clients with long sessions.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import PositiveFloat

from fedsim.selection import Pool, Selector, State


@dataclass(kw_only=True)
class Availability(Selector):
    """Chooses who stays long enough.

    Args:
        margin: How many available clients are looked at, relative to the wanted number.
        reserve: A client must stay this many times its predicted round trip.
    """

    margin: PositiveFloat = 3.0
    reserve: PositiveFloat = 1.0

    def choose(self, wanted: int, pool: Pool, state: State) -> list[int]:
        """Rank a larger sample by whether it stays."""
        sample = pool.sample(max(wanted, round(self.margin * wanted)))
        left = {c: pool.left_s(c) for c in sample}
        stays = [c for c in sample if left[c] > self.reserve * pool.seconds(c)]
        others = [c for c in sample if c not in set(stays)]
        return (stays + sorted(others, key=lambda c: -left[c]))[:wanted]
