"""The main path: one scenario becomes one run.

    scenario -> split -> grid of workers -> strategy -> rounds -> run folder

The round loop is ours over Flower's strategy methods (``Strategy.start`` can neither resume nor
stop early); a test shows that both give the same weights.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import Strategy

from fedsim import records
from fedsim.arrays import Arrays, conform, non_finite, sha256
from fedsim.assembly import build_strategy, connect, describe, event_loop, launched, open_grid
from fedsim.checkpoint import Checkpoint, Checkpoints, restore_strategy
from fedsim.data import partition
from fedsim.engine import internals
from fedsim.engine.blocks import Report
from fedsim.engine.event_loop import EventLoop
from fedsim.engine.grid import WorkerGrid
from fedsim.engine.launch import Launch
from fedsim.engine.worker import Recipe
from fedsim.engine.world import World, columns, totals
from fedsim.errors import OutputError, RunError
from fedsim.event_strategy import EventStrategy
from fedsim.events import at_work, polite_interrupt, recorded
from fedsim.ledger import Ledger
from fedsim.models import catalogue, execution
from fedsim.progress import Reporter
from fedsim.records import Record
from fedsim.results import Run, RunFolder
from fedsim.scenario import Scenario, load
from fedsim.seeds import Seeds
from fedsim.strategy import (
    to_arrays,
    to_record,
)
from fedsim.tracking import tracked

log = logging.getLogger("fedsim")


def run(
    scenario: Scenario,
    *,
    out: Path = Path("runs"),
    source: Path | None = None,
    reporter: Reporter | None = None,
    launch: Launch | None = None,
) -> Run:
    """Run a scenario with its one seed and write the run folder.

    Args:
        scenario: What to run; ``scenario.seeds`` is the caller's business.
        out: Parent of run folders.
        source: The scenario file, copied into the folder.
        reporter: Shows progress; silent by default.
        launch: Worker processes of the caller, who may have more runs for them; the run starts
            and ends its own by default.

    Returns:
        The finished run folder.

    Raises:
        FedsimError: The run could not start or finish. Once the folder exists, it holds all
            rounds so far, the reason, and a summary.
    """
    with launched(scenario, launch) as workers:
        reporter = tracked([plugin.section for plugin in scenario.track], reporter)
        split = partition.make(scenario, scenario.seed)
        strategy = build_strategy(scenario, split.num_clients)
        recipe = Recipe(scenario, split.ownership, scenario.seed)
        world = World.of(recipe)
        folder = RunFolder.create(out, scenario, source)
        with at_work(folder.path):
            return _execute(Simulation(recipe, strategy, world, folder, reporter, workers), None)


def resume(path: Path, *, reporter: Reporter | None = None) -> Run:
    """Continue a run from its last checkpoint, to the same bits as without the interruption.

    Raises:
        OutputError: The folder holds no checkpoint, or the run is finished.
        RunError: The run is at work in another process.
        FedsimError: As for ``run``.
    """
    found = Run.open(path)
    scenario = load(path / "resolved.yaml")
    if found.status == "done":
        raise OutputError("is finished", where=str(path), hint="There is nothing to resume")
    with at_work(path):
        with recorded(RunFolder(path), reporter or Reporter()):
            saved = Checkpoints(path, scenario.checkpoint.keep).latest()
        with launched(scenario) as launch:
            reporter = tracked([plugin.section for plugin in scenario.track], reporter)
            split = partition.make(scenario, scenario.seed)
            strategy = build_strategy(scenario, split.num_clients)
            recipe = Recipe(scenario, split.ownership, scenario.seed)
            world = World.of(recipe)
            with recorded(RunFolder(path), reporter):
                folder = RunFolder.reopen(path, saved.server_round)
            return _execute(Simulation(recipe, strategy, world, folder, reporter, launch), saved)


def _execute(simulation: Simulation, saved: Checkpoint | None) -> Run:
    with recorded(simulation.folder, simulation.reporter):
        try:
            simulation.reporter.begin(simulation.folder.path)
            simulation.run(saved)
            simulation.finish(None)
        except BaseException as error:
            reason = _stopped(error)
            with suppress(OutputError):  # the disk may be what is wrong
                simulation.finish(reason)
            raise reason from error.__cause__
        finally:
            simulation.reporter.stop()
    return Run.open(simulation.folder.path)


def _stopped(error: BaseException) -> BaseException:
    """A file that cannot be written is no longer the user's option once the run has begun."""
    if not isinstance(error, OutputError):
        return error
    return RunError(
        error.what,
        where=error.where,
        hint="What was written before is whole: once there is room, try `fedsim resume` on the run",
    )


class Simulation:
    """The rounds of one run and everything they write."""

    def __init__(
        self,
        recipe: Recipe,
        strategy: Strategy,
        world: World | None,
        folder: RunFolder,
        reporter: Reporter,
        launch: Launch | None,
    ) -> None:
        self.launch = launch
        self.recipe, self.strategy, self.world = recipe, strategy, world
        self.folder, self.reporter = folder, reporter
        self.scenario = recipe.scenario
        self.seeds = Seeds(recipe.seed)
        self.ledger = Ledger()
        self.records: list[Record] = []
        self.key_metric = ("eval/loss", "min")
        self.weights: Arrays | None = None
        self.events: EventLoop | None = None
        self.checkpoints = Checkpoints(folder.path, self.scenario.checkpoint.keep)

    def run(self, saved: Checkpoint | None) -> None:
        """All rounds, from building the workers to the last test."""
        scenario = self.scenario
        self.reporter.start(f"{scenario.name}: writing {self.folder.path}", scenario.num_rounds)
        peft, dtype = scenario.model.peft or {}, scenario.model.dtype
        on_cpu = not scenario.engine.gpus_per_worker
        doubts = [
            catalogue.averaging_warning(peft),
            execution.bfloat16_warning() if dtype == "bfloat16" and on_cpu else None,
        ]
        for warning in filter(None, doubts):
            log.warning(warning)
        with (
            polite_interrupt(self.reporter) as asked_to_stop,
            open_grid(self.recipe, self.launch, self.reporter, self.checkpoints) as grid,
        ):
            name, mode = grid.facts["key_metric"]
            self.key_metric = (f"eval/{name}", mode)
            self.reporter.message(describe(grid))
            connect(grid, self.strategy, self.world)
            self.events = event_loop(grid, self.strategy, self.world)
            arrays = self.begin(grid, saved)
            first = saved.server_round + 1 if saved else 1
            for server_round in range(first, scenario.num_rounds + 1):
                start = time.perf_counter()
                arrays, record = self.round(server_round, grid, arrays)
                self.write(record, grid, arrays, start)
                stop = asked_to_stop() and server_round < scenario.num_rounds
                if stop or self.is_saved(server_round):
                    self.save(server_round, grid, arrays)
                if stop:
                    raise KeyboardInterrupt

    def begin(self, grid: WorkerGrid, saved: Checkpoint | None) -> ArrayRecord:
        """Weights to start from: the initial ones, tested as round 0, or those of a checkpoint."""
        if saved is None:
            arrays = to_record(grid.facts["arrays"])
            if isinstance(self.strategy, EventStrategy):
                self.strategy.begin(arrays)
            self.write({"round": 0}, grid, arrays, time.perf_counter())
            return arrays
        self.records.extend(Run.open(self.folder.path).rounds)
        self.ledger.restore(saved.ledger)
        grid.states.restore(saved.clients)
        grid.residuals.restore(saved.residuals)
        grid.restore(saved.codecs)
        restore_strategy(self.strategy, saved.strategy)
        self.weights = conform(saved.weights, grid.facts["arrays"])  # no round may be left
        if self.world:
            self.world.restore(saved.extras["world"])
        if self.events:
            self.events.restore(saved.extras["events"])
        return to_record(saved.weights)

    def save(self, server_round: int, grid: WorkerGrid, arrays: ArrayRecord) -> None:
        """Write a checkpoint."""
        weights = to_arrays(arrays)
        parts = {"world": self.world, "events": self.events}
        extras = {name: part.checkpoint() for name, part in parts.items() if part}
        ledger = self.ledger.totals
        self.checkpoints.save(server_round, weights, self.strategy, ledger, grid, extras)

    def round(
        self, server_round: int, grid: WorkerGrid, arrays: ArrayRecord
    ) -> tuple[ArrayRecord, Record]:
        """One round of training, and of clients' own tests when asked for."""
        # Stock strategies sample clients and draw noise from Python's and NumPy's generators.
        self.seeds.seed_globals("strategy", server_round, with_torch=False)
        if self.events:
            aggregated, metrics = self.events.until_update(self.scenario.max_failed_fraction)
        else:
            aggregated, metrics = self.train(server_round, grid, arrays)
        reports = grid.take_reports()
        record = self.account(server_round, reports)
        record |= internals.of_round(grid, self.strategy, reports, arrays, aggregated)
        record["clients/retried"] = grid.take_retried()
        record |= _prefixed("train/", metrics, remove="train_")
        arrays = arrays if aggregated is None else aggregated
        self._check_finite(record, arrays)
        if self.scenario.evaluate.personal and self.is_tested(server_round):
            self.personal_tests(record, grid, arrays)
        return arrays, record | self.ledger.close_round()

    def train(
        self, server_round: int, grid: WorkerGrid, arrays: ArrayRecord
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Send a round to its clients and aggregate what they answer."""
        grid.offer(self.world.offer(server_round) if self.world else None)
        messages = list(self.strategy.configure_train(server_round, arrays, ConfigRecord(), grid))
        grid.offer(None)
        self.reporter.round_begins(server_round, len(messages))
        replies = grid.send_and_receive(messages)
        return self.strategy.aggregate_train(server_round, replies)

    def personal_tests(self, record: Record, grid: WorkerGrid, arrays: ArrayRecord) -> None:
        """Add scores of the weights on clients' own test rows; what this sends is counted, too."""
        server_round = record["round"]
        messages = self.strategy.configure_evaluate(server_round, arrays, ConfigRecord(), grid)
        replies = grid.send_and_receive(list(messages))
        scores = self.strategy.aggregate_evaluate(server_round, replies)
        reports = grid.take_reports()
        self.ledger.add(reports)
        self.folder.add_clients([_row(server_round, "evaluate", r) for r in reports])
        record |= _prefixed("personal/", scores)
        if failed := sum(r.status == "failed" for r in reports):
            record["clients/failed_tests"] = failed
            self._check_failures(record, reports, failed / len(reports))

    def account(self, server_round: int, reports: list[Report]) -> Record:
        """Write the clients' rows, count bytes and failures, and stop a run that fails too much."""
        self.folder.add_clients([_row(server_round, "train", r) for r in reports])
        steps = [step for report in reports for step in report.steps]
        self.folder.add_steps(steps)
        if self.scenario.log_steps and server_round == 1 and not steps:
            log.warning("log_steps: '%s' has logged no step", self.scenario.client.name)
        self.ledger.add(reports)
        failed = sum(r.status == "failed" for r in reports)
        record: Record = {
            "round": server_round,
            "clients/selected": len(reports),
            "clients/completed": sum(r.status == "ok" for r in reports),
            "clients/failed": failed,
        }
        share = failed / max(1, len(reports))
        if self.events:
            record |= self.events.close_round() | totals(reports)
            share = self.events.failed_fraction
        elif self.world:
            record |= self.world.close_round(server_round, reports)
        self._check_failures(record, reports, share)
        return record

    def _check_failures(self, record: Record, reports: list[Report], share: float) -> None:
        if share > self.scenario.max_failed_fraction:
            server_round = record["round"]
            failed = [r.error for r in reports if r.status == "failed"]
            counted = f"{len(failed)} of {len(reports)} clients failed in round {server_round}"
            if self.events:  # over several updates; the last failure may be earlier than this one
                counted = f"{share:.0%} of the latest clients failed up to round {server_round}"
            self._stop(
                record,
                f"{counted}, more than max_failed_fraction = {self.scenario.max_failed_fraction}"
                + (f"; the first: {failed[0]}" if failed else ""),
                hint="events.log names them all; a larger max_failed_fraction lets the run go on",
            )

    def _check_finite(self, record: Record, arrays: ArrayRecord) -> None:
        if bad := non_finite(to_arrays(arrays, copy=False)):
            self._stop(
                record,
                f"after round {record['round']} the model's {bad} holds NaN or infinity",
                hint="Try lower learning rates, the server's or the clients'",
            )

    def _stop(self, record: Record, problem: str, hint: str) -> NoReturn:
        """End the run; what is known of its last round is written before."""
        record |= self.ledger.close_round()
        self.records.append(record)
        self.folder.add_round(record)
        raise RunError(problem, hint=hint)

    def write(self, record: Record, grid: WorkerGrid, arrays: ArrayRecord, start: float) -> None:
        """Test the weights when it is due and write the round."""
        server_round = record["round"]
        weights = conform(to_arrays(arrays), grid.facts["arrays"])
        if self.is_tested(server_round):
            record |= _prefixed("eval/", grid.test(weights))
        if server_round == self.scenario.num_rounds:
            record |= _prefixed("eval/", grid.final_metrics(weights))
        self.weights = weights
        record["time/wall_s"] = round(time.perf_counter() - start, 4)
        record["mem/peak_bytes"] = grid.peak_bytes
        self.records.append(record)
        self.folder.add_round(record)
        self.reporter.round_done(record)

    def is_tested(self, server_round: int) -> bool:
        """Whether this round ends with a test: every so often, and the first and the last."""
        last = server_round == self.scenario.num_rounds
        return last or server_round % self.scenario.evaluate.every == 0

    def is_saved(self, server_round: int) -> bool:
        """Whether this round ends with a checkpoint."""
        last = server_round == self.scenario.num_rounds
        return last or server_round % self.scenario.checkpoint.every == 0

    def finish(self, error: BaseException | None) -> None:
        """Write summary and status, whatever happened."""
        interrupted = isinstance(error, KeyboardInterrupt)
        reason = "interrupted" if interrupted else f"{type(error).__name__}: {error}"
        code = 0 if error is None else 3 if interrupted else getattr(error, "exit_code", 1)
        summary = records.summarise(
            records.identity(self.scenario),
            self.records,
            key_metric=self.key_metric,
            weights_sha256=None if self.weights is None else sha256(self.weights),
            failed=False if error is None else reason,
            exit_code=code,
        )
        status = "done" if error is None else "interrupted" if interrupted else "failed"
        if error is not None:
            with suppress(OutputError):
                self.folder.event("ERROR", reason)
        self.folder.finish(summary, status)


def _row(server_round: int, stage: str, report: Report) -> Record:
    row: Record = {
        "round": server_round,
        "stage": stage,
        "client": report.client,
        "status": report.status,
        "num_examples": report.num_examples,
        **report.metrics,
        **report.internals,
        "up_bytes": report.up_bytes,
        "down_bytes": report.down_bytes,
        "time/wall_s": round(report.wall_s, 4),
        **columns(report),
    }
    return row | ({"error": report.error} if report.error else {})


def _prefixed(prefix: str, metrics: MetricRecord | Record | None, remove: str = "") -> Record:
    return {f"{prefix}{k.removeprefix(remove)}": v for k, v in (metrics or {}).items()}
