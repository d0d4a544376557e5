"""What is measured of each client's update while it is at hand: its length, what its codec loses.

Nothing is encoded or decoded for it, sums have a fixed order, and no training result depends on it.
Norms are L2 norms over all arrays. In clients.jsonl:

    update_norm         of the update, before it is encoded
    decoded_norm        of what the server makes of the message, with a lossy codec
    compression_error   |decoded - update| / |update|; where blocks answer as one client
    residual_norm       |what the server still lacks after the message| / |update|: the error that
                        EF14 and EControl carry on, the distance to the server's estimate elsewhere

``internals.of_round`` puts a round together from these.
"""

from __future__ import annotations

from fedsim.arrays import Arrays, distance, norm
from fedsim.codec import Codec
from fedsim.engine.blocks import Report

UPDATE, DECODED, LOST, RESIDUAL = (
    "update_norm",
    "decoded_norm",
    "compression_error",
    "residual_norm",
)


def note_update(report: Report, update: Arrays, length: float, codec: Codec, kept: Arrays) -> None:
    """Note how long a client's update is, and measure what is left of it after its message.

    Args:
        report: Of the client; gets the numbers.
        update: Before encoding.
        length: Its norm.
        codec: Has just encoded it.
        kept: What the codec remembers now.
    """
    report.internals[UPDATE] = length
    residual = codec.residual(update, kept)
    if residual is not None:
        report.internals[RESIDUAL] = _relative(residual, report)


def note_decoded(
    report: Report, decoded: Arrays, codec: Codec, update: Arrays | None = None
) -> Arrays:
    """Measure what a lossy codec made of an update, which is compared where it is at hand.

    Returns:
        The decoded arrays as they are.
    """
    if not (codec.lossless or codec.accumulates):
        report.internals[DECODED] = norm(decoded)
        if update is not None and not codec.stateful:  # feedback has its residual
            report.internals[LOST] = _relative(distance(decoded, update), report)
    return decoded


def _relative(value: float, report: Report) -> float:
    """A length in units of the update's; 0 of an update of length 0 is 0."""
    size = report.internals[UPDATE]
    return value / size if size else value
