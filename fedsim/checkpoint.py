"""Checkpoints: everything between two rounds, so that ``fedsim resume`` gives the same bits.

A checkpoint is one safetensors file in ``checkpoints/`` of the run folder, written under a
temporary name and renamed: weights, the strategy's state, ledger totals, and which version of each
client's state was current. Random streams need no saving: they are functions of seed and round.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.serverapp.strategy import Strategy

from fedsim import trees
from fedsim.arrays import Arrays
from fedsim.engine.states import ClientStates, Versions, pack_versions, unpack_versions
from fedsim.errors import OutputError, PayloadError
from fedsim.seeds import Seeds

log = logging.getLogger("fedsim")
FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after a round."""

    server_round: int
    weights: Arrays
    strategy: Mapping[str, Any]
    ledger: Mapping[str, int]
    clients: Versions
    extras: Mapping[str, Any] = field(default_factory=dict)


class Checkpoints:
    """The checkpoints of one run folder.

    Args:
        run: The run folder.
        keep: How many to keep; more than one guards against a torn file.
    """

    def __init__(self, run: Path, keep: int) -> None:
        self.folder = run / "checkpoints"
        self.keep = keep
        self._versions: list[Versions] = []

    @property
    def clients_folder(self) -> Path:
        """Where client states lie."""
        return self.folder / "clients"

    def save(
        self,
        server_round: int,
        weights: Arrays,
        strategy: Strategy,
        ledger: Mapping[str, int],
        states: ClientStates,
        extras: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a checkpoint and delete what only older ones needed.

        ``extras`` is what further parts of a run keep between rounds, by their name.

        Raises:
            OutputError: It cannot be written; older checkpoints are untouched.
        """
        versions = states.flush()
        content = {
            "format": FORMAT,
            "round": server_round,
            "weights": weights,
            "strategy": strategy_state(strategy),
            "ledger": dict(ledger),
            "clients": pack_versions(versions),
            "extras": dict(extras or {}),
        }
        trees.save(self.folder / f"round-{server_round:06d}.safetensors", content)
        for old in self._files()[: -self.keep]:
            old.unlink(missing_ok=True)
        self._versions = [*self._versions, versions][-self.keep :]
        states.drop_except(self._versions)

    def latest(self) -> Checkpoint:
        """The newest checkpoint that is whole.

        Raises:
            OutputError: There is none.
        """
        for path in reversed(self._files()):
            try:
                return _read(path)
            except PayloadError as error:
                log.warning("%s; the checkpoint before it is used", error)
        raise OutputError(
            "has no checkpoint to resume from",
            where=str(self.folder.parent),
            hint="Run the scenario again; checkpoint.every sets how often one is written",
        )

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("round-*.safetensors"))


def _read(path: Path) -> Checkpoint:
    content = trees.load(path)
    if content.get("format") != FORMAT:
        raise PayloadError(f"is of format {content.get('format')}, not {FORMAT}", where=str(path))
    return Checkpoint(
        server_round=content["round"],
        weights=content["weights"],
        strategy=content["strategy"],
        ledger=content["ledger"],
        clients=unpack_versions(content["clients"]),
        extras=content.get("extras", {}),
    )


def strategy_state(strategy: Strategy) -> dict[str, Any]:
    """The attributes of any strategy that can be written: numbers, arrays, records, nested ones.

    Functions and what the engine sets anew are left out; anything else is named in the log.
    """
    state: dict[str, Any] = {}
    for name, value in vars(strategy).items():
        if isinstance(value, Strategy):
            state[name] = {"strategy": strategy_state(value)}
        elif not callable(value) and not isinstance(value, Seeds):
            try:
                trees.pack(value, {})
                state[name] = value
            except TypeError as error:
                log.warning("checkpoints leave out %s.%s: %s", type(strategy).__name__, name, error)
    return state


def restore_strategy(strategy: Strategy, state: Mapping[str, Any]) -> None:
    """Set the attributes that ``strategy_state`` returned."""
    for name, value in state.items():
        inner = getattr(strategy, name, None)
        if isinstance(inner, Strategy):
            restore_strategy(inner, value["strategy"])
        else:
            setattr(strategy, name, value)
