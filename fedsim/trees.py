"""Nested state (dicts, lists, arrays, Flower records) in one safetensors file; no pickle.

Arrays become tensors of the file, everything else a JSON tree in its metadata. A file carries the
digest of its content in its own metadata, so that a torn or altered one is noticed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedsim.errors import OutputError, PayloadError

Tensors = dict[str, NDArray[Any]]
_SENSELESS = (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What reading leads to where something else stands than ``pack`` wrote."""
STORED = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64"
"""Names of the dtypes that safetensors stores."""
RECORDS = {"ArrayRecord": ArrayRecord, "MetricRecord": MetricRecord, "ConfigRecord": ConfigRecord}


def save(path: Path, value: Any) -> None:
    """Write a nested value: a temporary name first, then a rename.

    Raises:
        OutputError: The file cannot be written; one that was there is untouched.
        TypeError: The value holds an object that has no place in such a file.
    """
    from safetensors.numpy import save as to_bytes

    tensors: Tensors = {}
    tree = json.dumps(pack(value, tensors), separators=(",", ":"))
    data = to_bytes(tensors, metadata={"tree": tree, "digest": _digest(tree, tensors)})
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise OutputError(
            f"cannot be written: {error.strerror or error}",
            where=str(path),
            hint="Check permissions and free space",
        ) from error


def load(path: Path) -> Any:
    """Read a nested value back.

    Raises:
        PayloadError: The file is torn, altered, or not of this kind.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        tree = metadata["tree"]
        if _digest(tree, tensors) != metadata["digest"]:
            raise PayloadError("its content does not match its digest", where=str(path))
        return unpack(json.loads(tree), tensors)
    except (OSError, SafetensorError, *_SENSELESS) as error:
        raise PayloadError(f"is torn or altered: {error}", where=str(path)) from None


def pack(value: Any, tensors: Tensors) -> Any:
    """A JSON tree in which arrays are replaced by names in ``tensors``, which is filled.

    Raises:
        TypeError: The value holds an object that has no place in such a file.
    """
    if isinstance(value, np.generic):  # kept apart from Python's numbers: it decides dtypes
        return {"scalar": pack(np.asarray(value), tensors)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray):
        if value.dtype.name not in STORED.split():
            raise TypeError(f"an array of {value.dtype} has no place in a checkpoint")
        name = str(len(tensors))
        tensors[name] = np.ascontiguousarray(value, value.dtype.newbyteorder("="))
        return {"array": name, "shape": list(value.shape)}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, Array):
        return {"flower": pack(value.numpy(), tensors)}
    if isinstance(value, RecordDict | ArrayRecord | MetricRecord | ConfigRecord):
        return {"record": type(value).__name__, "items": _items(value, tensors)}
    if isinstance(value, Mapping):
        return {"dict": _items(value, tensors)}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [pack(v, tensors) for v in value]}
    raise TypeError(f"{type(value).__name__} has no place in a checkpoint")


def unpack(tree: Any, tensors: Tensors) -> Any:
    """The value of a tree made by ``pack``."""
    if not isinstance(tree, dict):
        return tree
    if "array" in tree:
        return tensors[tree["array"]].reshape(tree["shape"])
    if "scalar" in tree:
        return unpack(tree["scalar"], tensors)[()]
    if "bytes" in tree:
        return bytes.fromhex(tree["bytes"])
    if "flower" in tree:
        return Array(unpack(tree["flower"], tensors))
    if "list" in tree:
        return [unpack(v, tensors) for v in tree["list"]]
    if "tuple" in tree:
        return tuple(unpack(v, tensors) for v in tree["tuple"])
    pairs = tree["items"] if "record" in tree else tree["dict"]
    items = {unpack(k, tensors): unpack(v, tensors) for k, v in pairs}
    return RECORDS.get(tree["record"], RecordDict)(items) if "record" in tree else items


def _items(value: Mapping[Any, Any], tensors: Tensors) -> list[list[Any]]:
    return [[pack(k, tensors), pack(v, tensors)] for k, v in value.items()]


def _digest(tree: str, tensors: Tensors) -> str:
    digest = hashlib.blake2b(tree.encode(), digest_size=16)
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype.str}".encode())
        digest.update(np.ascontiguousarray(tensors[name]).tobytes())
    return digest.hexdigest()
