"""What frozen blocks answer to clients' rows: computed once on a machine, kept within a budget."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from fedsim.models.prefix import Rows

if TYPE_CHECKING:
    from fedsim.task import Batch

log = logging.getLogger("fedsim")
_NAME = "hidden"


class Answers:
    """Answers by client, in memory or, with a folder, in files that all processes map.

    Args:
        budget: Bytes of answers that this process computes and keeps; it computes others again.
            What other processes wrote into the folder is mapped and not counted.
        folder: Where the processes of a run find each other's answers.
    """

    def __init__(self, budget: int, folder: Path | None = None) -> None:
        self._left = budget
        self._folder = folder
        self._kept: dict[str, Rows] = {}

    def of(self, key: str, attach: Callable[[Tensor | None], Batch]) -> Batch:
        """The rows of ``key`` with their answers, if they can have any.

        Args:
            key: Names rows.
            attach: Adds known answers to the rows, or computes them.
        """
        if key in self._kept:
            return self._kept[key]
        known = self._read(key)
        rows = attach(known)
        if not isinstance(rows, Rows):
            return rows
        if known is None:
            if rows.num_bytes > self._left:
                return rows
            self._left -= rows.num_bytes
            self._write(key, rows.hidden)
            mapped = self._read(key)
            rows = rows if mapped is None else Rows(rows, mapped)  # no second copy in memory
        self._kept[key] = rows
        return rows

    def _read(self, key: str) -> Tensor | None:
        if self._folder is None or not (self._folder / key).exists():
            return None
        from safetensors.torch import load_file

        return load_file(self._folder / key)[_NAME]

    def _write(self, key: str, hidden: Tensor) -> None:
        if self._folder is None:
            return
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        part = self._folder / f"{key}.{uuid.uuid4().hex}"
        try:
            save_file({_NAME: hidden.contiguous()}, part)
            part.replace(self._folder / key)  # whole or not at all
        except (OSError, SafetensorError) as error:  # a full disk, say
            log.info("answers of frozen blocks stay in one process: %s", error)
            part.unlink(missing_ok=True)
