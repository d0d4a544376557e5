"""FedMeZO's client: MeZO on an adapter, with the learning rate and the seeds the server chose.

    repeat local_steps times:  g = [L(w + eps z) - L(w - eps z)] / (2 eps);  w <- w - eta_i g z
    sends w - w_received

Z. Ling et al., "On the Convergence of Zeroth-Order Federated Tuning for Large Language Models", KDD
2024, https://arxiv.org/abs/2402.05926, with its H = 30 steps of batch 1. The strategy ``fedmezo``
sends eta_i. Shared seeds (``direction-seed``) are ours; without them this is ``mezo``.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import PositiveInt

from fedsim.client import Client
from fedsim.clients.mezo import MeZO


@dataclass(kw_only=True)
class FedMeZO(MeZO):
    """MeZO under the strategy ``fedmezo``; the other options are those of ``mezo``.

    Args:
        local_steps: Steps in a round, H.
        batch_size: Rows in a batch.
    """

    local_steps: PositiveInt = 30
    batch_size: PositiveInt = 1

    def seed(self, client: Client, number: int) -> int:
        """The server's seed, the same for all clients of a round, or one of the client's own."""
        if "direction-seed" not in client.config:
            return super().seed(client, number)
        return (int(client.config["direction-seed"]) + number) % 2**63
