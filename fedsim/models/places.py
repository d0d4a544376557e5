"""Where pretrained models and tokenizers lie: a folder, an installed package, or the Hub.

A Hub model that is already on this machine is used as it is, without asking the network.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from fedsim.errors import Key, ModelError

T = TypeVar("T")


def fetch(name: str, how_to_get: str, key: Key, get: Callable[..., T]) -> T:
    """Read something with transformers from a folder, a package or the Hub.

    Args:
        name: Folder, ``package:module/folder``, or Hub id.
        how_to_get: What the scenario's author says to a reader who lacks it.
        key: Place of ``name`` in the scenario.
        get: Called with the folder or id, and with ``local_files_only`` for the latter.

    Raises:
        ModelError: There is no such place, or what lies there cannot be read.
    """
    folder = find_folder(name, how_to_get, key)
    with quiet(), readable(f"'{name}' cannot be loaded", key, {}, how_to_get):
        if folder is not None:
            return get(str(folder), local_files_only=True)
        try:
            return get(name, local_files_only=True)
        except OSError as error:
            if not hub_reachable():
                raise ModelError(
                    f"'{name}' is not a folder here, not in the Hugging Face cache, and the Hub "
                    "cannot be reached",
                    key=key,
                    hint=how_to_get or "Download it where there is a network, and name its folder",
                ) from error
        return get(name)


def find_folder(name: str, how_to_get: str, key: Key) -> Path | None:
    """The local folder that a model's name means, or None for a Hub id.

    Raises:
        ModelError: The name is a path or a package, and there is no such folder.
    """
    if name.startswith("package:"):
        return _package_folder(name, how_to_get, key)
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ModelError(f"'{name}' is a file, not a model's folder", key=key)
    if name.startswith((".", "/", "~", "\\")) or name.count("/") > 1:
        raise ModelError(f"there is no folder '{name}'", key=key, hint=how_to_get)
    return None


def _package_folder(name: str, how_to_get: str, key: Key) -> Path:
    module, _, inner = name.removeprefix("package:").partition("/")
    if not module or importlib.util.find_spec(module.split(".")[0]) is None:
        raise ModelError(
            f"the package '{module}' is not installed",
            key=key,
            hint=how_to_get or "Install it into the environment that runs fedsim",
        )
    try:
        folder = Path(str(files(module).joinpath(inner)))
    except ModuleNotFoundError as error:
        raise ModelError(f"cannot import '{module}': {error}", key=key, hint=how_to_get) from error
    if not folder.is_dir():
        raise ModelError(f"the package '{module}' has no folder '{inner}'", key=key)
    return folder


@cache
def hub_reachable() -> bool:
    """One request without retries; transformers alone would try for half a minute."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # no route, no name, no certificate, a proxy that refuses: all the same here
        return False
    return True


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' log and progress bars: what matters is said by fedsim."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


@contextmanager
def readable(what: str, key: Key, options: Mapping[str, Any], hint: str = "") -> Iterator[None]:
    """Turn whatever a library raises into a ModelError that names the option at fault, if any."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        blamed = [n for n, v in options.items() if f"'{n}'" in text or text == repr(v)]
        raise ModelError(
            f"{what}: {type(error).__name__}: {text[:300]}", key=(*key, *blamed[:1]), hint=hint
        ) from error
