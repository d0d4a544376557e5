"""Altered bytes: seeded mutations of payloads and files, and frames that lie."""

from __future__ import annotations

import xxhash

from fedsim.codec import HEADER


def frame_again(header: bytes, body: bytes) -> bytes:
    """A body under a header whose length and checksum are right for it."""
    magic, version, codec, layout, _, _ = HEADER.unpack(header)
    checksum = xxhash.xxh3_64_intdigest(body) & 0xFFFFFFFF
    return HEADER.pack(magic, version, codec, layout, len(body), checksum) + body
