"""Ray and its worker processes: how they start, and how they end.

Light on purpose: a command starts Ray before it has loaded torch, or has a copy taken of itself
as soon as it has (``fork_server``).
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Self

from fedsim.engine import fork_client, fork_server, resources
from fedsim.errors import RunError
from fedsim.loading import loading
from fedsim.scenario import EngineSection, ModelSection

if TYPE_CHECKING:
    from fedsim.engine.worker import Recipe

log = logging.getLogger("fedsim")
CONNECT_S = 10.0
"""How long a cluster may take to answer."""
MAX_RESTARTS = 100
"""How often Ray brings one worker process back."""

_RAY = ThreadPoolExecutor(1, "ray")
"""Where every Ray of this process starts and ends, one after the other.

Its one thread stays: Ray's processes are told to end with the thread that started them.
"""

_UNUSED = ("start_monitor", "start_log_monitor", "start_api_server")
"""What a local Ray starts beside its workers, and a run has no use for: the autoscaler, the
forwarding of logs, the dashboard's server. Methods of Ray's own; one that a release does not have
is not left out."""
_STARTS = "start_ray_processes"
"""The method of Ray's own that starts the processes of a node."""

_unwanted: list[Future[None]] = []
_fork_server: fork_server.ForkServer | None = None
"""For every local Ray of this process: it must be made before the first of them."""


def ends_unwanted() -> bool:
    """Whether a Ray that nobody asked for is still about to end; it also ends with this process."""
    return any(not ended.done() for ended in _unwanted)


class Launch:
    """Ray and its worker processes, started beside what this process has to load.

    A context; leaving it ends Ray. Nobody waits for that where the workers were never asked for,
    as after a typo in the scenario.

    Args:
        engine: How many workers, and where.
        model: What they will have to build.
    """

    def __init__(self, engine: EngineSection, model: ModelSection) -> None:
        self.num_workers = resources.num_workers(engine)
        self._asked = False
        server = _forks(engine, model)
        _check_address(engine.address)
        _load_ray(engine.address)  # here: threads that import together meet half-loaded modules
        self._actors = _RAY.submit(_start_actors, engine, self.num_workers, server)

    def actors(self) -> list[Any]:
        """The worker processes, as soon as they exist.

        Raises:
            RunError: Ray did not start, or the cluster is too small.
        """
        self._asked = True
        return list(self._actors.result())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        ended = _RAY.submit(self._end)
        if self._asked:
            ended.result()
        else:
            _unwanted.append(ended)

    def _end(self) -> None:
        if self._actors.exception() is None:
            import ray

            ray.shutdown()


def launching(engine: EngineSection, model: ModelSection) -> AbstractContextManager[Launch | None]:
    """Worker processes that start at once; none for the inline backend."""
    return Launch(engine, model) if engine.backend == "ray" else nullcontext()


class WorkerProcess:
    """A process that builds its own worker from a recipe."""

    @loading()
    def __init__(self, path: list[str]) -> None:
        sys.path[:] = path  # user code beside the scenario is importable here too
        _load_worker()  # while the driver does other things
        self.worker: Any = None

    def build(self, recipe: Recipe) -> dict[str, Any]:
        """Build the worker and tell about it."""
        from fedsim.engine.worker import Worker

        self.worker = None  # that of the seed before makes room first
        self.worker = Worker(recipe, expendable=True)
        return self.worker.facts()  # type: ignore[no-any-return]

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the worker."""
        if self.worker is None:
            raise WorkerDied("it died between two calls, and Ray has started it again", began=False)
        return getattr(self.worker, method)(*arguments)


class WorkerDied(Exception):
    """The process behind a call ended; ``began`` is False if that was before the call."""

    def __init__(self, reason: str, began: bool = True) -> None:
        super().__init__(reason, began)
        self.reason = reason
        self.began = began

    def __str__(self) -> str:
        return self.reason


def _load_worker() -> None:
    """Import what every worker needs, heavy libraries among it."""
    import fedsim.data.owned
    import fedsim.engine.worker  # noqa: F401


def _forks(engine: EngineSection, model: ModelSection) -> fork_server.ForkServer | None:
    """The fork server, started here for the first run that can use one.

    None for a cluster, whose workers start on its nodes; with GPUs, with several threads in a
    worker, or where this process has threads or Ray already: that does not survive copying.
    """
    global _fork_server
    if engine.start_method != "forkserver" or engine.address != "local":
        return None
    if engine.gpus_per_worker or engine.threads_per_worker > 1:
        return None
    if _fork_server is None and fork_server.is_safe():
        with loading():
            _load_worker()
        try:
            _fork_server = fork_server.ForkServer(_libraries(model))
        except OSError as error:  # no memory for a copy, or too long a path for its socket
            log.info("each worker loads its libraries for itself: %s", error)
    return _fork_server


def _libraries(model: ModelSection) -> list[str]:
    """What a worker imports, beside what every worker needs, to build the model."""
    from fedsim.models.load import is_function

    is_transformer = model.name is None or not is_function(model.name)
    return ["transformers.modeling_utils"] * is_transformer + ["peft"] * (model.peft is not None)


def _start_actors(
    engine: EngineSection, num_workers: int, server: fork_server.ForkServer | None
) -> list[Any]:
    ray = _start(engine, num_workers, server)
    actor = ray.remote(max_restarts=MAX_RESTARTS, **resources.of_worker(engine))(WorkerProcess)
    return [actor.remote(sys.path) for _ in range(num_workers)]


def _start(engine: EngineSection, num_workers: int, server: fork_server.ForkServer | None) -> Any:
    """Start Ray on the loopback interface with a token, or join a cluster."""
    import ray

    address = engine.address
    logging.getLogger("ray").setLevel(logging.ERROR)
    offer = resources.of_local_ray(engine, num_workers)
    try:
        with _lean(server):
            ray.init(
                address=address,
                logging_level=logging.ERROR,
                log_to_driver=False,
                configure_logging=False,
                **({**offer, "include_dashboard": False} if address == "local" else {}),
            )
    except Exception as error:
        raise RunError(
            f"Ray did not start ({address}): {error}", hint="Try engine.backend=inline"
        ) from error
    try:
        resources.check(engine, num_workers, ray.cluster_resources())  # type: ignore[no-untyped-call]
    except RunError:
        ray.shutdown()
        raise
    return ray


@contextmanager
def _lean(server: fork_server.ForkServer | None) -> Iterator[None]:
    """Let a Ray that starts in this context do without what nobody uses or needs to wait for.

    With a server, its workers are copies of that.
    """
    from ray._private.node import Node

    kept = {name: method for name, method in vars(Node).items() if name in (_STARTS, *_UNUSED)}
    for name, method in kept.items():
        lean = _node_start(method, server) if name == _STARTS else _nothing
        setattr(Node, name, lean)
    try:
        yield
    finally:
        for name, method in kept.items():
            setattr(Node, name, method)


def _nothing(*args: Any, **kwargs: Any) -> None:
    """In place of a method that starts what is not used."""


def _node_start(
    start: Callable[[Any], None], server: fork_server.ForkServer | None
) -> Callable[[Any], None]:
    """How a node starts: with workers from the server, if there is one, and noticed within 0.1 s.

    Ray itself looks every second. A release without its own ``wait_for_node`` starts as it is.
    """
    from ray._private import services

    def start_and_notice(node: Any) -> None:
        if server:
            client = {"setup_worker_path": fork_client.__file__}
            node._ray_params.update(**client, env_vars={fork_client.SERVER: str(server.address)})
        start(node)
        services.wait_for_node(node.gcs_address, node.plasma_store_socket_name)

    return start_and_notice if hasattr(services, "wait_for_node") else start


def _check_address(address: str) -> None:
    """Refuse a cluster that does not answer; Ray itself asks for minutes.

    Raises:
        RunError: The host is unknown, or nothing listens there.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():  # local, auto
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise RunError(
            f"engine.address: no Ray cluster answers at {address}: {error}",
            hint="Start one with `ray start --head --port=6379`, or leave engine.address out",
        ) from error


def _load_ray(address: str) -> None:
    """Import Ray, which reads its settings then."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # 15 starves beside anything else that runs
    # No worker before it is needed: a program would wait for ever for one that died too soon.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    # Processes of a node that find no answer yet ask again: after 20 ms for 10 s, not after 1 s.
    os.environ.setdefault("RAY_raylet_client_connect_timeout_milliseconds", "20")
    os.environ.setdefault("RAY_raylet_client_num_connect_attempts", "500")
    if address == "local":
        _lock_up()
    import ray  # noqa: F401


def _lock_up() -> None:
    """Let a local Ray listen on the loopback interface only, and to this process only.

    Set after the import, they would lock this process out.
    """
    settings = {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
    }
    if "ray" not in sys.modules:
        for name, value in settings.items():
            os.environ.setdefault(name, value)
    elif not settings.keys() <= os.environ.keys():
        log.warning(
            "ray was imported before the run started, so its ports have no token; set %s before",
            ", ".join(settings),
        )
