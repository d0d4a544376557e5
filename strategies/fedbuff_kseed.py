"""FedBuff over seeds: asynchronous FedKSeed.

    on sums A that are tau versions old:  buffer <- buffer + s(tau) A,  s(tau) = (1 + tau)^-a
    after buffer_size answers:  G <- G + server_learning_rate buffer / normaliser
                                w  = w0 - eta sum_k G_k z(s_k)

FedKSeed's update is additive: the model is the initial one plus a sum over directions, and what a
client found along its seeds may be added to any later model. So the buffer holds sums of scalars in
place of weights, and kilobytes travel, as in ``fedkseed``. The union is ours; the parts are J.
Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation", AISTATS 2022,
https://arxiv.org/abs/2106.06639, and Z. Qin et al., "Federated Full-Parameter Tuning of
Billion-Sized Language Models with Communication Cost under 18 Kilobytes", ICML 2024,
https://arxiv.org/abs/2312.06353.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fedsim.arrays import Arrays, scale
from fedsim.errors import PluginError
from fedsim.event_strategy import Push
from fedsim.strategies.fedbuff import FedBuff
from fedsim.strategies.fedkseed import FedKSeed
from fedsim.strategy import State


@dataclass(kw_only=True)
class FedBuffKSeed(FedBuff, FedKSeed):
    """Buffered sums of scalars with staleness weights; takes clients ``kseed``.

    The options are those of ``fedbuff`` and ``fedkseed``; ``server_momentum`` and
    ``synchronise: missing`` are refused, for sums of seeds have no direction to keep, and clients
    that start between two server updates would need a message each.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.server_momentum:
            raise PluginError(
                "momentum is not defined over sums of scalars",
                key=("strategy", "server_momentum"),
                allowed="0",
            )
        if self.synchronise != "accumulators":
            raise PluginError(
                "all clients that start from one version receive the same message",
                key=("strategy", "synchronise"),
                allowed="accumulators",
            )

    def arrive(self, push: Push, weights: Arrays, state: State) -> Arrays | None:
        """Collect a client's sums; the mean once the buffer is full."""
        return super().arrive(replace(push, delta=self.sums(push.delta)), weights, state)

    def server_update(self, weights: Arrays, delta: Arrays, state: State) -> Arrays:
        """Add to the accumulators, and what changed to the weights."""
        return FedKSeed.server_update(self, weights, scale(delta, self.server_learning_rate), state)
