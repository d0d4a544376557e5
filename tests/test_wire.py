"""The packed form of vectors: equal after a round trip, exact lengths, bounded, never guessed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedsim import wire
from fedsim.codec import Payload
from fedsim.errors import ClientError, PayloadError
from fedsim.wire import VECTORS as FRAME

VECTORS = st.dictionaries(
    st.text("abcdefgh_", min_size=1, max_size=8),
    st.sampled_from(wire.DTYPES).flatmap(lambda d: hnp.arrays(d, st.integers(0, 40))),
    min_size=1,
    max_size=5,
)


@settings(max_examples=60, deadline=None)
@given(VECTORS)
def test_round_trip_keeps_bits_and_counts_all_bytes(arrays):
    payload = wire.pack(arrays)
    decoded = wire.unpack(payload)
    assert list(decoded) == list(arrays)
    for name, x in arrays.items():
        assert decoded[name].dtype == x.dtype
        assert decoded[name].tobytes() == x.tobytes()
    assert sum(payload.parts.values()) == payload.num_bytes == len(payload.data)


@pytest.mark.parametrize(("bound", "bits"), [(2, 1), (1024, 10), (4096, 12), (65_536, 16)])
def test_indices_take_the_bits_of_the_largest(bound, bits):
    x = np.arange(bound - 200 if bound > 200 else 0, bound, dtype=np.uint32)
    payload = wire.pack({"i": x})
    assert payload.parts["indices"] == -(-x.size * bits // 8)
    assert payload.num_bytes == FRAME.header.size + 1 + 2 + 6 + payload.parts["indices"]


@settings(max_examples=60, deadline=None)
@given(VECTORS, st.integers(0, 10_000), st.integers(1, 255))
def test_altered_bytes_are_refused_or_bounded(arrays, position, change):
    """Even with a right checksum, a foreign body is refused or decodes to what its bytes hold."""
    body = bytearray(wire.pack(arrays).data[FRAME.header.size :])
    body[position % len(body)] ^= change
    forged = Payload(FRAME.close([bytes(body)]))
    try:
        decoded = wire.unpack(forged)
    except PayloadError:
        return
    bits = sum(max(1, int(x.max()).bit_length()) if x.dtype.kind == "u" and x.size else 0
               for x in decoded.values())  # fmt: skip
    assert sum(x.size for x in decoded.values()) <= 8 * len(body)
    assert bits <= 64 * len(decoded)


def test_truncated_payloads_and_false_counts_are_refused():
    data = wire.pack({"i": np.arange(100, dtype=np.uint16)}).data
    for length in range(len(data)):
        with pytest.raises(PayloadError):
            wire.unpack(Payload(data[:length]))
    with pytest.raises(PayloadError, match="altered"):
        wire.unpack(Payload(data[:3] + b"x" + data[4:]))  # a byte that means nothing
    huge = bytes([1, 1]) + b"i" + wire._HEAD.pack(3, 1, 2**32 - 1) + b"\0"
    with pytest.raises(PayloadError, match="ends too early"):
        wire.unpack(Payload(FRAME.close([huge])))
    without_bits = bytes([1, 1]) + b"i" + wire._HEAD.pack(3, 0, 2**32 - 1)
    with pytest.raises(PayloadError, match="values of 0 bits"):
        wire.unpack(Payload(FRAME.close([without_bits])))


@pytest.mark.parametrize(
    ("arrays", "fault"),
    [
        ({}, "0 vectors"),
        ({"x": np.zeros((2, 2))}, r"float64 \(2, 2\)"),
        ({"x": np.zeros(2, np.int64)}, "int64"),
        ({"x": np.float32([1, np.nan])}, "NaN"),
        ({"x" * 40: np.zeros(2)}, "32 bytes"),
    ],
)
def test_what_cannot_travel_is_refused(arrays, fault):
    with pytest.raises(ClientError, match=fault):
        wire.check(arrays)
