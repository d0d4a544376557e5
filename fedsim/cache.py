"""Files that are costly to make and depend on nothing but their key: made once per user.

They lie in the user's cache directory (``FEDSIM_CACHE`` overrides it), named by a digest of what
they were made from, so that workers and later runs find them. Deleting the directory is safe.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import platformdirs

logger = logging.getLogger("fedsim")


def cache_path(kind: str, key: str) -> Path:
    """Where the file ``key`` of a kind (such as ``tokenizers``) lies; it need not exist."""
    root = os.environ.get("FEDSIM_CACHE") or platformdirs.user_cache_path("fedsim")
    return Path(root) / kind / key


def cached_file(kind: str, digest: str, suffix: str, write: Callable[[Path], None]) -> Path:
    """The cached file of a digest; made now when it is not there.

    Several processes may ask at once: one makes it and the others wait for it.

    Args:
        kind: Folder in the cache directory.
        digest: Identifies everything that the content depends on, versions included.
        suffix: Ending of the file name, such as ``.safetensors``.
        write: Makes the content at the given path.

    Returns:
        The file to read. When the cache directory cannot be written, it is a temporary file that
        lives as long as this process, and a warning is logged.
    """
    path = cache_path(kind, digest + suffix)
    if os.path.isfile(path):  # unlike Path.is_file, False for a folder that may not be entered
        return path
    with _alone(path):
        return path if os.path.isfile(path) else _make(path, write)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock of a cached file, where its place can be written."""
    locks = path.parent.with_name("locks")
    lock = filelock.FileLock(locks / f"{path.name}.lock")
    try:
        locks.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError:
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _make(path: Path, write: Callable[[Path], None]) -> Path:
    scratch = Path(tempfile.mkdtemp(prefix="fedsim-"))
    fresh = scratch / path.name
    try:
        write(fresh)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    try:
        publish(fresh, path)
    except OSError as error:
        logger.warning("nothing is cached in %s: %s", path.parent, error)
        atexit.register(shutil.rmtree, scratch, ignore_errors=True)
        return fresh
    shutil.rmtree(scratch, ignore_errors=True)
    return path


def publish(fresh: Path, path: Path) -> None:
    """Copy a finished file to its place, so that readers see all of it or nothing.

    Raises:
        OSError: The place cannot be written.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copyfile(fresh, partial)
        os.replace(partial, path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
