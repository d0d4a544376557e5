"""Averaging with known participation: each client is weighed by the inverse of its rate.

    w <- w + (eta / N) sum_{n took part} Delta_n / p_n

The ideal that FedAU (https://arxiv.org/abs/2306.03401) approaches without knowing the rates; also
called importance or inverse-probability weighting. A simulation knows the rates: they are those of
the scenario's availability, or given here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import PositiveFloat

from fedsim.arrays import Arrays, add, scale
from fedsim.errors import PluginError
from fedsim.strategy import DeltaStrategy, State


@dataclass(kw_only=True)
class KnownParticipation(DeltaStrategy):
    """Weights from true participation rates; all clients count alike.

    Args:
        rates: Share of rounds in which each client takes part, in order of client index; none asks
            the simulation.
        server_learning_rate: Step along the sum (eta).
    """

    rates: list[PositiveFloat] | None = None
    server_learning_rate: PositiveFloat = 1.0

    def client_weights(self, server_round: int, clients: Sequence[int]) -> Mapping[int, float]:
        """One over each client's rate."""
        return {client: 1.0 / self._rate(client) for client in clients}

    def server_update(self, weights: Arrays, delta: Arrays, state: State) -> Arrays:
        """Step along the weighted sum over all N clients."""
        step = self.server_learning_rate * self.total_weight / (self.num_clients or 1)
        return add(weights, scale(delta, step))

    def _rate(self, client: int) -> float:
        if self.rates is not None:
            return self.rates[client]
        if self.participation_rate is None:
            raise PluginError(
                "known_participation needs to know how often clients take part",
                key=("strategy", "rates"),
                hint="Give rates, or a scenario whose availability has known rates",
            )
        return self.participation_rate(client)
