"""Prefers clients that will be available when they are expected to finish.

    of margin * wanted available clients: first those that are there after their predicted round
    trip, then the others

FedScale's rule (F. Lai et al., ICML 2022, https://arxiv.org/abs/2105.11367) drops clients that are
not active at their predicted completion; here they are not chosen in the first place. A server
would have to predict presence, as REFL does (A. M. Abdelmoniem et al., EuroSys 2023,
https://arxiv.org/abs/2111.01108); the simulator knows it, so this is an upper bound.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydantic import PositiveFloat

from fedsim.selection import Pool, Selector, State, as_ids


@dataclass(kw_only=True)
class Availability(Selector):
    """Chooses who will be there at the end.

    Args:
        margin: How many available clients are looked at, relative to the wanted number.
        reserve: When a client must be there, in predicted round trips from now.
    """

    margin: PositiveFloat = 2.0
    reserve: PositiveFloat = 1.0

    def choose(self, wanted: int, pool: Pool, state: State) -> list[int]:
        """Put those first that stay, in a larger sample."""
        sample = as_ids(pool.sample(max(wanted, round(self.margin * wanted))))
        seconds = np.array([pool.seconds(int(c)) for c in sample])
        order = np.argsort(~pool.stays(sample, self.reserve * seconds), kind="stable")
        return [int(c) for c in sample[order[:wanted]]]
