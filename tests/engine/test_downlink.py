"""The server's way down: which number, and so which random draws, a broadcast has."""

import numpy as np

from fedsim.chain import build_chain
from fedsim.engine.downlink import Downlink
from fedsim.seeds import Seeds


def payloads(*before: str) -> list[bytes]:
    """Two broadcasts of the same weights, after others were sent."""
    downlink = Downlink(build_chain([{"name": "qsgd"}]), Seeds(1))
    weights = {"w": np.linspace(0, 1, 50, dtype=np.float32)}
    for what in before:
        downlink.pack(weights) if what == "packed" else downlink.encode(weights, number=4)
    return [downlink.encode(weights).payload.tobytes() for _ in range(2)]


def test_versions_that_are_sent_once_more_and_packed_vectors_change_no_other_draws():
    first, second = payloads()
    assert first != second
    assert payloads("version", "version", "packed") == [first, second]


def test_every_broadcast_has_a_key_of_its_own():
    downlink = Downlink(build_chain([]), Seeds(1))
    weights = {"w": np.ones(3, np.float32)}
    sent = [*(downlink.encode(weights) for _ in range(2)), downlink.encode(weights, number=2)]
    sent += [downlink.pack(weights) for _ in range(2)]
    assert len({broadcast.key for broadcast in sent}) == 5
