"""pfl-research, in its own environment: one process, or several started with torchrun."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.internal.ops import pytorch_ops
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn

from tests.bench import models, works
from tests.bench.local import num_trainable
from tests.bench.peers.program import Arguments, Meter, Result, main
from tests.bench.works import Work


class Module(nn.Module):
    """The work's model with the two methods that pfl asks for; counts what it does."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.names = sorted(models.client_rows(work.name, 0))
        self.inner = models.build_model(work)
        self.total, self.steps = 0.0, 0

    def loss(self, *tensors: Tensor) -> Tensor:
        """Mean loss of a batch."""
        self.inner.train()
        value = models.loss(self.inner, dict(zip(self.names, tensors, strict=True)))
        self.total += value.item()
        self.steps += 1
        return value

    @torch.no_grad()
    def metrics(self, *tensors: Tensor) -> dict[str, Any]:
        """pfl tests the clients of the first round, which is not timed."""
        batch = dict(zip(self.names, tensors, strict=True))
        rows = len(batch["labels"])
        return {"loss": Weighted(models.loss(self.inner, batch).item() * rows, rows)}


class Clock(TrainingProcessCallback):  # type: ignore[misc]
    """Reads the clock after each round."""

    def __init__(self, module: Module, rounds: int) -> None:
        self.module, self.meter = module, Meter(rounds)
        self.counts: list[list[float]] = []

    def on_train_begin(self, *, model: Any) -> Metrics:
        """The first round begins."""
        self.meter.begin()
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: Any, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """A round ended."""
        self.meter.round_done()
        self.counts.append([self.module.total, self.module.steps])
        self.module.total, self.module.steps = 0.0, 0
        return False, Metrics()


def run(arguments: Arguments) -> Result:
    """FederatedAveraging on pfl's simulated backend."""
    work, rounds = arguments.work, arguments.rounds
    torch.set_num_threads(arguments.workers if work.threads_help else 1)
    np.random.seed(works.SEED)  # noqa: NPY002  (pfl draws from it, alike in all processes)
    module = Module(work)
    works.rows(work.name)
    clock = Clock(module, rounds)
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=rounds,
            evaluation_frequency=10**9,
            train_cohort_size=work.cohort,
            val_cohort_size=None,
        ),
        backend=SimulatedBackend(
            training_data=_data(work), val_data=None, postprocessors=[WeightByDatapoints()]
        ),
        model=PyTorchModel(
            module,
            lambda parameters, lr: torch.optim.SGD([p for p in parameters if p.requires_grad], lr),
            torch.optim.SGD(list(models.trained(module).values()), lr=1.0),
        ),
        model_train_params=NNTrainHyperParams(
            local_batch_size=work.batch_size,
            local_num_epochs=1 if work.trains else None,
            local_num_steps=None if work.trains else 0,
            local_learning_rate=work.learning_rate,
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=None),
        callbacks=[clock],
        send_metrics_to_platform=False,
    )
    counts = torch.tensor(clock.counts, dtype=torch.float64)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(counts)
    steps = counts[:, 1].unique().tolist()
    assert len(steps) == 1, f"rounds have different numbers of steps: {steps}"
    losses = (counts[:, 0] / counts[:, 1].clamp(min=1)).tolist()
    meter = clock.meter
    return Result(
        meter.seconds,
        losses,
        steps[0],
        num_trainable(module),
        meter.startup_s,
        meter.cpu_per_round,
        meter.others_cpu_per_round,
    )


def _data(work: Work) -> FederatedDataset:
    def make(client: int) -> Dataset:
        batch = models.client_rows(work.name, client)
        return Dataset([batch[name] for name in sorted(batch)], user_id=str(client))

    clients = list(range(work.num_clients))
    return FederatedDataset(make, get_user_sampler("minimize_reuse", clients))


if __name__ == "__main__":
    if int(os.environ.get("RANK", 0)) == 0:
        main(run, "pfl")
    else:
        run(Arguments.parse())
    assert pytorch_ops.distributed is not None
