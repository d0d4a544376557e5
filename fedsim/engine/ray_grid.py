"""The grid over Ray actors: one resident worker per actor, results in a fixed order.

Blocks go to whichever actor is idle; which one works on a block has no influence on its result.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from fedsim.engine.calls import Call, blocks_of
from fedsim.engine.grid import WorkerGrid
from fedsim.engine.launch import Launch, WorkerDied
from fedsim.engine.states import ClientStates
from fedsim.engine.worker import Recipe
from fedsim.errors import FedsimError, RunError

log = logging.getLogger("fedsim")
_NOT_SENT = "The actor is restarting"
"""What Ray says of a call to an actor that has died before."""
_START_S = 10.0
"""Seconds in which a worker process starts and builds its worker, as a rule."""
MEMORY_HINT = "Was it out of memory? Fewer workers (engine.workers) need less"


class RayGrid(WorkerGrid):
    """Runs blocks on the Ray actors of a launch."""

    def __init__(
        self,
        recipe: Recipe,
        launch: Launch,
        on_reply: Callable[[int], None] = lambda n: None,
        states: ClientStates | None = None,
        residuals: ClientStates | None = None,
    ) -> None:
        super().__init__(recipe, on_reply, states, residuals)
        self.launch = launch
        self.num_workers = launch.num_workers
        self._scratch = ExitStack()

    def __enter__(self) -> Self:
        import ray

        actors = self.launch.actors()  # waits for Ray
        self._idle: list[Any] = []
        self._waited_since = time.monotonic()
        with ExitStack() as stack:
            recipe = self.recipe
            if recipe.scenario.engine.address == "local":
                scratch = stack.enter_context(TemporaryDirectory(prefix="fedsim-"))
                recipe = replace(recipe, scratch=Path(scratch))
            self._recipe = ray.put(recipe)  # held, so that restarted actors can read it
            self._recovering = {self._build(actor): actor for actor in actors}
            while self._recovering or not self._idle:
                ref = self._next([*self._recovering], patient=not self._idle)
                if ref is None:
                    break  # who is late joins when it is ready
                self._take_back(ref)
            self._scratch = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._idle, self._recovering = [], {}
        self._scratch.close()

    def share(self, value: Any) -> Any:
        """Put the value into the object store once; arrays in it are read without a copy.

        Raises:
            RunError: The store has no room, in memory or on its disk.
        """
        import ray

        try:
            return ray.put(value)
        except ray.exceptions.RayError as error:
            raise RunError(f"Ray cannot keep a broadcast: {error}", hint=MEMORY_HINT) from error

    def map(self, method: str, calls: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        """Keep every actor busy, largest calls first; yield results in the order of the calls.

        A call whose actor dies is made again on another one: it depends on its arguments alone, so
        the answer is the same. Where it ends every actor, its clients are tried one by one, and it
        is made without those that end theirs; they have failed. A death counts against the one
        call that the actor had begun.

        Raises:
            RunError: No actor is left, or a call ended several of them and no client is to blame.
        """
        numbered = sorted(enumerate(calls), key=lambda call: (_size(call[1]), -call[0]))
        waiting = [Call(arguments, index) for index, arguments in numbered]
        running: dict[Any, tuple[Call, Any]] = {}
        done: dict[int, Any] = {}
        for wanted in range(len(calls)):
            while wanted not in done:
                while waiting and (actor := self._free_actor(running, len(waiting))):
                    call = waiting.pop()
                    running[actor.call.remote(method, *self.filled(call.arguments))] = (call, actor)
                ref = self._next([*running, *self._recovering])
                if ref in self._recovering:
                    self._take_back(ref)
                    continue
                call, actor = running.pop(ref)
                try:
                    answer = _result(ref)
                    if call.index is not None:
                        done[call.index] = answer
                    waiting += call.answered()
                    if not self._recovers(actor) and not _calls(running, actor):
                        self._idle.append(actor)
                except WorkerDied as death:
                    queued = [running.pop(other)[0] for other in _calls(running, actor)]
                    waiting += [*queued, *self._after_death(call, death, queued)]
                    if not self._recovers(actor) and not _among(actor, self._idle):
                        self._recovering[self._build(actor)] = actor
            yield done.pop(wanted)

    def _free_actor(self, running: dict[Any, tuple[Call, Any]], waiting: int) -> Any:
        """An actor for the next call, if one may have it.

        While more calls wait than there are actors, each has a second one in its queue, so that it
        need not wait for this process between two; the last calls go to whoever is idle.
        """
        if self._idle:
            return self._idle.pop()
        if waiting <= self.num_workers:
            return None
        actors = (actor for _, actor in running.values())
        return next(
            (a for a in actors if len(_calls(running, a)) == 1 and not self._recovers(a)), None
        )

    def _recovers(self, actor: Any) -> bool:
        return _among(actor, self._recovering.values())

    def _build(self, actor: Any) -> Any:
        """Let an actor build its worker, however often Ray has to start it for that."""
        return actor.build.options(max_task_retries=-1).remote(self._recipe)

    def _next(self, refs: list[Any], patient: bool = True) -> Any:
        """The reference that is ready first; None where none is soon, and nobody is patient."""
        import ray

        if not refs:
            raise RunError("no worker process is left", hint=MEMORY_HINT)
        while True:
            ready, _ = ray.wait(refs, num_returns=1, timeout=_START_S)
            self._start_another()
            if ready or not patient:
                return ready[0] if ready else None

    def _start_another(self) -> None:
        """Let Ray start one more process where an actor has waited long for its own.

        A process that dies before Ray has heard of it leaves its actor waiting for ever; the next
        one to start takes its place. Where none died, this one has nothing to do and ends.
        """
        import ray

        now = time.monotonic()
        if not self._recovering:
            self._waited_since = now
        elif now - self._waited_since > _START_S:
            self._waited_since = now
            ray.remote(num_cpus=0)(lambda: None).remote()

    def _take_back(self, ref: Any) -> None:
        """An actor has built its worker and is ready, or it is gone for good."""
        actor = self._recovering.pop(ref)
        try:
            facts = _result(ref)
            self.facts = self.facts or facts
            self._idle.append(actor)
        except WorkerDied as death:
            log.warning("a worker is gone for good: %s", death)

    def _after_death(self, call: Call, death: WorkerDied, queued: list[Call]) -> list[Call]:
        """What is to be done next: the same once more, or its clients one by one."""
        again = call.ended_a_worker() if death.began else [call]
        if again is None:
            raise RunError(
                f"the same work ended {call.deaths} worker processes: {death}", hint=MEMORY_HINT
            )
        self._retried += sum(waiting.num_clients for waiting in queued)
        if call.fatal:
            fate = "left out"
        else:
            self._retried += call.num_clients
            fate = "sent out again" if again == [call] else "sent out again, one by one"
        log.warning("a worker died (%s); its %d clients are %s", death, call.num_clients, fate)
        return again


def _size(arguments: tuple[Any, ...]) -> int:
    """Training rows of a call, which its time follows."""
    return sum(block.num_examples for block in blocks_of(arguments))


def _calls(running: dict[Any, tuple[Call, Any]], actor: Any) -> list[Any]:
    """References of the calls that an actor has."""
    return [ref for ref, (_, other) in running.items() if other is actor]


def _among(actor: Any, actors: Iterable[Any]) -> bool:
    return any(actor is other for other in actors)


def _deaths() -> tuple[type[Exception], ...]:
    """What Ray raises for a call whose process or node ended."""
    from ray import exceptions as ray

    return (
        ray.RayActorError,
        ray.ObjectLostError,
        ray.NodeDiedError,
        ray.OutOfMemoryError,
        ray.WorkerCrashedError,
    )


def _result(ref: Any) -> Any:
    """The value of a reference; the project's own errors come through as they are."""
    import ray

    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, FedsimError | WorkerDied):
            raise error.cause from None
        raise
    except _deaths() as error:
        reason = str(error).splitlines()[0]
        raise WorkerDied(reason, began=_NOT_SENT not in reason) from None
    except ray.exceptions.RayError as error:
        raise RunError(f"Ray failed: {error}") from error
