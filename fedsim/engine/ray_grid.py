"""The grid over Ray actors: one resident worker per actor, results in a fixed order.

Blocks go to whichever actor is idle; which one works on a block has no influence on its result.
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

from fedsim.engine.grid import WorkerGrid
from fedsim.engine.worker import Recipe
from fedsim.errors import FedsimError, RunError


class RayGrid(WorkerGrid):
    """Runs blocks on ``num_workers`` Ray actors."""

    def __init__(
        self,
        recipe: Recipe,
        on_reply: Callable[[int], None] = lambda n: None,
        *,
        num_workers: int,
    ) -> None:
        super().__init__(recipe, on_reply)
        self.num_workers = num_workers

    def __enter__(self) -> Self:
        ray = _start(self.recipe.scenario.engine.address, self.num_workers)
        try:
            actor = ray.remote(num_cpus=1)(_Actor)
            self.actors = [actor.remote(sys.path) for _ in range(self.num_workers)]
            recipe = ray.put(self.recipe)
            # The first worker builds alone: it fills caches (warm start, tokenizer) for the others.
            self.facts = self._get(self.actors[0].build.remote(recipe))
            for ref in [a.build.remote(recipe) for a in self.actors[1:]]:
                self._get(ref)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        import ray

        self.actors = []
        ray.shutdown()

    def share(self, value: Any) -> Any:
        """Put the value into the object store once; arrays in it are read without a copy."""
        import ray

        return ray.put(value)

    def map(self, method: str, calls: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        """Keep every actor busy with one call; yield results in the order of the calls."""
        import ray

        waiting = list(enumerate(calls))[::-1]
        idle = list(self.actors)
        running: dict[Any, tuple[int, Any]] = {}
        done: dict[int, Any] = {}
        for wanted in range(len(calls)):
            while wanted not in done:
                while waiting and idle:
                    index, arguments = waiting.pop()
                    actor = idle.pop()
                    running[actor.call.remote(method, *arguments)] = (index, actor)
                ready, _ = ray.wait(list(running), num_returns=1)
                index, actor = running.pop(ready[0])
                done[index] = self._get(ready[0])
                idle.append(actor)
            yield done.pop(wanted)

    def _get(self, ref: Any) -> Any:
        import ray

        try:
            return ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, FedsimError):
                raise error.cause from None
            raise
        except ray.exceptions.RayActorError as error:
            raise RunError(
                f"a worker process died: {str(error).splitlines()[0]}",
                hint="Was it out of memory? Fewer workers (engine.workers) need less",
            ) from None


class _Actor:
    """A process that builds its own worker from a recipe."""

    def __init__(self, path: list[str]) -> None:
        sys.path[:] = path  # user code beside the scenario is importable here too
        import fedsim.engine.worker  # noqa: F401  (torch loads while the driver does other things)

    def build(self, recipe: Recipe) -> dict[str, Any]:
        from fedsim.engine.worker import Worker

        self.worker = Worker(recipe)
        return self.worker.facts()

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self.worker, method)(*arguments)


def _start(address: str, num_workers: int) -> Any:
    """Start Ray on the loopback interface with a token, or join a cluster."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address == "local":
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(16))
    import ray

    local: dict[str, Any] = {"num_cpus": num_workers, "include_dashboard": False}
    try:
        ray.init(
            address=address,
            logging_level=logging.ERROR,
            log_to_driver=False,
            configure_logging=False,
            **(local if address == "local" else {}),
        )
    except Exception as error:
        raise RunError(
            f"Ray did not start ({address}): {error}", hint="Try engine.backend=inline"
        ) from error
    cpus = int(ray.cluster_resources().get("CPU", 0))  # type: ignore[no-untyped-call]
    if cpus < num_workers:
        ray.shutdown()
        raise RunError(f"{num_workers} workers need as many CPUs; the cluster has {cpus}")
    return ray
