"""The parts of a run, built and told about each other, as ``simulation`` needs them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from flwr.serverapp.strategy import Strategy

from fedsim import registry
from fedsim.checkpoint import Checkpoints
from fedsim.data.sources import check_files
from fedsim.engine.event_loop import EventLoop
from fedsim.engine.grid import WorkerGrid
from fedsim.engine.inline import InlineGrid
from fedsim.engine.launch import Launch, launching
from fedsim.engine.ray_grid import RayGrid
from fedsim.engine.states import ClientStates
from fedsim.engine.timetable import WorldTimetable
from fedsim.engine.worker import Recipe
from fedsim.engine.world import World
from fedsim.errors import PluginError
from fedsim.event_strategy import EventStrategy
from fedsim.progress import Reporter
from fedsim.scenario import Scenario
from fedsim.seeds import Seeds
from fedsim.strategy import DeltaStrategy, check_strategy, is_additive, sampling_arguments
from fedsim.units import human_bytes


def launched(
    scenario: Scenario, launch: Launch | None = None
) -> AbstractContextManager[Launch | None]:
    """Worker processes that start at once, beside what follows; none for the inline backend.

    Args:
        scenario: What they are for.
        launch: The caller's own, who ends them.

    Raises:
        DataError: A file is missing, which would end the run before they are of use.
    """
    check_files(scenario.data)
    return nullcontext(launch) if launch else launching(scenario.engine, scenario.model)


def open_grid(
    recipe: Recipe, launch: Launch | None, reporter: Reporter, checkpoints: Checkpoints
) -> WorkerGrid:
    """The grid on what was launched, or in this process; not yet entered."""
    budget = int(recipe.scenario.engine.client_state_mb * 1e6)
    folders = (checkpoints.clients_folder, checkpoints.residuals_folder)
    stores = [ClientStates(folder, budget) for folder in folders]
    if launch is None:
        return InlineGrid(recipe, reporter.clients_done, *stores)
    return RayGrid(recipe, launch, reporter.clients_done, *stores)


def build_strategy(scenario: Scenario, num_clients: int) -> Strategy:
    """The scenario's strategy, told how many clients to choose."""
    cohort = scenario.cohort_size(num_clients)
    evaluate = scenario.evaluate
    fraction = evaluate.fraction_evaluate if evaluate.personal else 0.0
    sampling = sampling_arguments(cohort, round(fraction * num_clients), num_clients)
    if scenario.devices:  # the world offers the round's clients, and all of them are asked
        sampling |= {"fraction_train": 1.0, "min_train_nodes": 0, "min_available_nodes": 0}
    strategy = registry.build("strategies", scenario.strategy.section, **sampling)
    check_strategy(strategy)
    if isinstance(strategy, DeltaStrategy):
        strategy.fraction_train = 1.0 if scenario.devices else cohort / num_clients
        strategy.fraction_evaluate = fraction
        strategy.num_clients = num_clients
        strategy.participation_rate = lambda client: cohort / num_clients
        strategy.seeds = Seeds(scenario.seed)
    if isinstance(strategy, EventStrategy):
        strategy.concurrency = cohort
    return strategy  # type: ignore[no-any-return]


def connect(grid: WorkerGrid, strategy: Strategy, world: World | None = None) -> None:
    """Tell the grid in which form this strategy takes replies, and in which world it works."""
    grid.world = world
    if world:
        world.weight_bytes = grid.facts["weight_bytes"]
        world.overlaps = bool(getattr(strategy, "overlaps", False))
    if world and isinstance(strategy, DeltaStrategy):
        strategy.participation_rate = world.participation()
    grid.deltas = isinstance(strategy, DeltaStrategy)
    if isinstance(strategy, DeltaStrategy):
        strategy.initial = lambda: {n: grid.facts["arrays"][n] for n in grid.facts["parameters"]}
    grid.reduce = is_additive(strategy)
    each = not grid.reduce or isinstance(strategy, EventStrategy)
    if grid.codecs.up.accumulates and each:
        raise PluginError(
            "the server would step with one mean over all clients, and "
            f"{type(strategy).__name__} wants every client's update",
            key=("codec", "up"),
            hint="Write error_feedback: {name: ef21, server: mirrors}",
        )
    rounds = grid.codecs.down.stateful or grid.planner
    if rounds and isinstance(strategy, EventStrategy):
        raise PluginError(
            "codecs with a memory on the way down and L-GreCo need rounds, in which every client "
            f"has one model; {type(strategy).__name__} has none",
            key=("codec",),
            hint="Take codecs without memory on the way down; on the way up all but plans are fine",
        )


def event_loop(grid: WorkerGrid, strategy: Strategy, world: World | None) -> EventLoop | None:
    """What takes the place of rounds for an asynchronous strategy."""
    if not isinstance(strategy, EventStrategy):
        return None
    assert world is not None, "checked when the scenario was loaded"
    return EventLoop(strategy, grid, WorldTimetable(world, grid, strategy.concurrency))


def describe(grid: WorkerGrid) -> str:
    """One line on model and clients."""
    facts = grid.facts
    size = human_bytes(sum(x.nbytes for x in facts["arrays"].values()))
    return (
        f"{grid.num_clients} clients; {facts['num_trainable']:,} of {facts['num_parameters']:,} "
        f"parameters are trained and exchanged ({size})"
    )
