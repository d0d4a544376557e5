"""The floor: one process per core; each resets its resident model, trains, adds up.

Nothing else: weights and sums lie in shared memory, two barriers make a round.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import multiprocessing as mp

from tests.bench import models, works
from tests.bench.local import Resident
from tests.bench.peers.program import Arguments, Meter, Result, main


def run(arguments: Arguments) -> Result:
    """Start the processes, average after each round."""
    work, num = arguments.work, arguments.workers
    size = sum(p.numel() for p in models.trained(models.build_model(work)).values())
    context = mp.get_context("spawn")
    barrier = context.Barrier(num + 1)
    weights = torch.zeros(size).share_memory_()
    sums = torch.zeros(num, size).share_memory_()
    losses = torch.zeros(num, dtype=torch.float64).share_memory_()
    shared = (weights, sums, losses, barrier)
    processes = [
        context.Process(
            target=_work, args=(work.name, arguments.rounds, rank, num, shared), daemon=True
        )
        for rank in range(num)
    ]
    for process in processes:
        process.start()
    barrier.wait()  # all are built
    meter, round_losses = Meter(arguments.rounds), []
    meter.begin()
    for _ in range(arguments.rounds):
        barrier.wait()
        barrier.wait()
        weights += sums.sum(0) / work.cohort  # all clients have equally many rows
        round_losses.append(float(losses.sum()) / work.cohort)
        meter.round_done()
    for process in processes:
        process.join()
    return Result(
        meter.seconds,
        round_losses,
        work.steps,
        size,
        meter.startup_s,
        meter.cpu_per_round,
        meter.others_cpu_per_round,
    )


def _work(name: str, rounds: int, rank: int, num: int, shared: tuple[Any, ...]) -> None:
    flat, sums, losses, barrier = shared
    torch.set_num_threads(1)
    resident = Resident(works.WORKS[name])
    weights, total = _views(flat, resident), _views(sums[rank], resident)
    if rank == 0:
        for view, parameter in zip(weights, resident.parameters, strict=True):
            view.copy_(parameter.detach())
    works.rows(name)
    barrier.wait()
    for server_round in range(1, rounds + 1):
        barrier.wait()
        sums[rank].zero_()
        losses[rank] = 0.0
        for client in works.cohort(resident.work, server_round)[rank::num]:
            resident.reset(weights)
            losses[rank] += resident.train(client, server_round)
            with torch.no_grad():
                torch._foreach_add_(total, torch._foreach_sub(resident.parameters, weights))
        barrier.wait()


def _views(flat: torch.Tensor, resident: Resident) -> list[torch.Tensor]:
    parts = flat.split([p.numel() for p in resident.parameters])
    return [x.view_as(p) for x, p in zip(parts, resident.parameters, strict=True)]


if __name__ == "__main__":
    main(run)
