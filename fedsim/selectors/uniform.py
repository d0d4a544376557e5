"""Every available client is equally likely; the default."""

from __future__ import annotations

from fedsim.selection import Pool, Selector, State


class Uniform(Selector):
    """A uniform sample without replacement of the clients that are available now.

    H. B. McMahan et al., AISTATS 2017, https://arxiv.org/abs/1602.05629. If fewer are available
    than wanted, all of them are chosen.
    """

    def choose(self, wanted: int, pool: Pool, state: State) -> list[int]:
        """Sample from the pool."""
        return pool.sample(wanted)
