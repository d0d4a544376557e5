"""Altered bytes: what hypothesis does to payloads and files, and payloads and files that lie."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from fedsim import codec as contract
from fedsim.arrays import Arrays

Change = Callable[[bytes], bytes]


def flip(position: int, bits: int) -> Change:
    """Exclusive or with one byte."""

    def change(data: bytes) -> bytes:
        at = position % max(1, len(data))
        return data[:at] + bytes(b ^ bits for b in data[at : at + 1]) + data[at + 1 :]

    return change


def cut(start: int, length: int) -> Change:
    """Take a stretch away; from the end when it starts there."""

    def change(data: bytes) -> bytes:
        at = start % (len(data) + 1)
        return data[:at] + data[at + length :]

    return change


def insert(position: int, more: bytes) -> Change:
    """Put bytes in between, or at the end."""

    def change(data: bytes) -> bytes:
        at = position % (len(data) + 1)
        return data[:at] + more + data[at:]

    return change


def write(position: int, value: bytes) -> Change:
    """Overwrite some bytes: a field of the header, with a length bomb for one."""

    def change(data: bytes) -> bytes:
        at = position % max(1, len(data))
        return data[:at] + value + data[at + len(value) :]

    return change


def bombs() -> st.SearchStrategy[bytes]:
    """Numbers that are enormous as lengths, in every width."""
    numbers = st.sampled_from([0, 1, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1])
    fit = {1: 2**8, 2: 2**16, 4: 2**32, 8: 2**64}
    return st.builds(
        lambda n, width: (n % fit[width]).to_bytes(width, "little"),
        numbers,
        st.sampled_from(list(fit)),
    )


def changes(header: int) -> st.SearchStrategy[list[Change]]:
    """One to four changes, half of them within the first ``header`` bytes."""
    where = st.one_of(st.integers(0, header), st.integers(0, 2**20))
    one = st.one_of(
        st.builds(flip, where, st.integers(1, 255)),
        st.builds(cut, where, st.sampled_from([1, 2, 3, 4, 8, 20, 64, 10**9])),
        st.builds(insert, where, st.binary(min_size=1, max_size=40)),
        st.builds(write, where, bombs()),
    )
    return st.lists(one, min_size=1, max_size=4)


def applied(data: bytes, made: list[Change]) -> bytes:
    """The bytes after all changes."""
    for change in made:
        data = change(data)
    return data


def framed(codec: Any, like: Arrays, body: bytes) -> bytes:
    """A body behind a header that is right for it, as a liar would make it."""
    return bytes(contract.frame(codec.signature, like, [body]).data)


def json_values() -> st.SearchStrategy[Any]:
    """What may stand at a place of a JSON tree where something else is expected."""
    leaves = st.one_of(
        st.none(),
        st.booleans(),
        st.sampled_from([0, -1, 1, 2**31, 10**18, -(10**18), 1e300, "", "0", "x", "deadbeef"]),
    )
    words = ["array", "shape", "scalar", "bytes", "flower", "record", "items", "dict", "list"]
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(st.sampled_from(words), inner, max_size=3),
        ),
        max_leaves=6,
    )


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all nodes of a JSON tree."""
    if not isinstance(tree, dict | list):
        return [path]
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return [path, *(p for key, value in inner for p in places(value, (*path, key)))]


def replaced(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy of a JSON tree with another value at a path."""
    if not path:
        return value
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[path[0]] = replaced(tree[path[0]], path[1:], value)
    return copy


def split_file(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and values of a safetensors file."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined_file(header: dict[str, Any], values: bytes) -> bytes:
    """A safetensors file of a header and values."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + values
