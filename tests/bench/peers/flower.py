"""Flower's own simulation, with a careful client: model and data stay in the actor's globals."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from tests.bench import models
from tests.bench.local import num_trainable
from tests.bench.peers.flower_client import client_app, record
from tests.bench.peers.program import Arguments, Meter, Result, main


class Timed(FedAvg):
    """FedAvg that reads the clock between rounds."""

    def __init__(self, meter: Meter, **options: Any) -> None:
        super().__init__(**options)
        self.meter = meter
        self.losses: list[float] = []

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Note when the first round begins."""
        if server_round == 1:
            self.meter.begin()
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Note when a round ends."""
        arrays, metrics = super().aggregate_train(server_round, replies)
        self.meter.round_done()
        assert metrics is not None, "every client failed"
        self.losses.append(float(metrics["train_loss"]))  # type: ignore[arg-type]
        return arrays, metrics


def run(arguments: Arguments) -> Result:
    """Run Flower's simulation with one actor per core."""
    import ray
    from flwr.simulation import run_simulation

    work = arguments.work
    model = models.build_model(work)
    meter = Meter(arguments.rounds)
    strategy = Timed(
        meter,
        fraction_train=min(1.0, (work.cohort + 0.5) / work.num_clients),
        fraction_evaluate=0.0,
        min_train_nodes=work.cohort,
        min_evaluate_nodes=0,
        min_available_nodes=work.num_clients,
    )
    server_app = ServerApp()

    @server_app.main()
    def serve(grid: Grid, context: Context) -> None:
        strategy.start(
            grid,
            record(model),
            num_rounds=arguments.rounds,
            train_config=ConfigRecord({"work": work.name}),
        )

    resources = {"num_cpus": 1, "num_gpus": 0.0}
    start = {"num_cpus": arguments.workers, "include_dashboard": False}
    try:
        run_simulation(
            server_app,
            client_app,
            num_supernodes=work.num_clients,
            backend_config={"client_resources": resources, "init_args": start},
        )
    finally:
        ray.shutdown()
    return Result(
        meter.seconds,
        strategy.losses,
        work.steps,
        num_trainable(model),
        meter.startup_s,
        meter.cpu_per_round,
        meter.others_cpu_per_round,
    )


if __name__ == "__main__":
    main(run, "flwr", "ray")
