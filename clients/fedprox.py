"""FedProx: local SGD with a pull towards the received weights.

    minimise  F_k(w_k) + (mu / 2) |w_k - w|^2

T. Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020,
https://arxiv.org/abs/1812.06127. Inexact local work (the gamma of the paper) is ``local_steps``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from fedsim.client import Client
from fedsim.clients.sgd import SGD
from fedsim.task import Batch


@dataclass(kw_only=True)
class FedProx(SGD):
    """Local training with a proximal term; the other options are those of ``sgd``.

    Args:
        proximal_mu: Strength of the pull; 0 is ``sgd``. A strategy that sends ``proximal-mu``
            (Flower's FedProx) overrides it.
    """

    proximal_mu: NonNegativeFloat = 0.01

    def loss(self, client: Client, batch: Batch) -> Tensor:
        """The task's loss plus the proximal term."""
        mu = float(client.config.get("proximal-mu", self.proximal_mu))
        distance = torch.zeros(())
        for name, p in client.parameters.items():
            distance = (
                distance + (p - torch.tensor(client.received[name], device=p.device)).square().sum()
            )
        return client.loss(batch) + mu / 2 * distance
