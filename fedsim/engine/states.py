"""Private state of clients, outside the workers: recent ones in memory, the others in files.

Every state has a version, the round that wrote it. A file holds one version, so a checkpoint is the
list of versions that were current: later rounds write other files and spoil nothing.
"""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedsim import trees
from fedsim.engine.blocks import ClientState

Versions = dict[int, int]
SHARDS = 256


class ClientStates:
    """A mapping from client to state, with a memory budget.

    Args:
        folder: Where files lie; a temporary folder by default.
        budget_bytes: Array bytes kept in memory; more is written to files.
    """

    def __init__(self, folder: Path | None = None, budget_bytes: int = 2**30) -> None:
        self._folder = folder
        self._budget = budget_bytes
        self._memory: OrderedDict[int, ClientState] = OrderedDict()
        self._bytes = 0
        self._current: Versions = {}
        self._written: set[tuple[int, int]] = set()

    def get(self, client: int) -> ClientState | None:
        """The client's latest state, or None before its first."""
        if client in self._memory:
            self._memory.move_to_end(client)
            return self._memory[client]
        if client not in self._current:
            return None
        state = trees.load(self._file(client, self._current[client]))
        self._remember(client, state)
        return state

    def put(self, client: int, state: ClientState, server_round: int) -> None:
        """Replace a client's state."""
        self._forget(client)
        self._current[client] = server_round
        self._written.discard((client, server_round))
        self._remember(client, state)

    def flush(self) -> Versions:
        """Write what is only in memory; returns the current versions, for a checkpoint."""
        for client in self._memory:
            self._write(client)
        return dict(self._current)

    def restore(self, versions: Mapping[int, int]) -> None:
        """Go back to the versions of a checkpoint; files of others are forgotten with time."""
        self._memory.clear()
        self._bytes = 0
        self._current = dict(versions)
        self._written = set(self._found()) | set(self._current.items())

    def check(self, versions: Mapping[int, int]) -> None:
        """Read the files of these versions, to be sure of them.

        Raises:
            PayloadError: One is missing, torn or altered.
        """
        for client, version in versions.items():
            trees.load(self._file(client, version))

    def _found(self) -> Iterator[tuple[int, int]]:
        """Client and version of the files that are there."""
        for path in self._folder.glob("*/*") if self._folder else ():
            client, _, version = path.stem.partition("-")
            if path.suffix == ".tmp":
                path.unlink(missing_ok=True)  # its writer was killed
            if client.isdecimal() and version.isdecimal():
                yield int(client), int(version)

    def drop_except(self, kept: list[Versions]) -> None:
        """Delete files that neither a kept checkpoint nor the present needs."""
        needed = {item for versions in (*kept, self._current) for item in versions.items()}
        for client, version in self._written - needed:
            self._file(client, version).unlink(missing_ok=True)
        self._written &= needed

    def _remember(self, client: int, state: ClientState) -> None:
        self._memory[client] = state
        self._bytes += _size(state)
        while self._bytes > self._budget and len(self._memory) > 1:
            oldest = next(iter(self._memory))
            self._write(oldest)
            self._forget(oldest)

    def _forget(self, client: int) -> None:
        if client in self._memory:
            self._bytes -= _size(self._memory.pop(client))

    def _write(self, client: int) -> None:
        version = self._current[client]
        if (client, version) not in self._written:
            trees.save(self._file(client, version), self._memory[client])
            self._written.add((client, version))

    def _file(self, client: int, version: int) -> Path:
        if self._folder is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="fedsim-states-")
            self._folder = Path(self._temporary.name)
        return self._folder / f"{client % SHARDS:02x}" / f"{client}-{version}.safetensors"


def _size(state: ClientState) -> int:
    """Bytes of the arrays in a state; Flower records count their serialised arrays."""
    total = 0
    for value in state.values():
        if isinstance(value, np.ndarray):
            total += value.nbytes
        elif isinstance(value, Mapping):
            total += sum(len(getattr(item, "data", b"")) for item in value.values())
    return total


def pack_versions(versions: Versions) -> dict[str, Any]:
    """Versions as two integer arrays."""
    return {
        "clients": np.fromiter(versions.keys(), np.int64, len(versions)),
        "versions": np.fromiter(versions.values(), np.int64, len(versions)),
    }


def unpack_versions(packed: Mapping[str, Any]) -> Versions:
    """The inverse of ``pack_versions``."""
    return dict(zip(packed["clients"].tolist(), packed["versions"].tolist(), strict=True))
