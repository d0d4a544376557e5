"""The virtual clock: how long a client's round trip takes, what it draws, and who is in time.

    trip = latency + 8 down_bytes / downlink + compute + 8 up_bytes / uplink
    compute = max(FLOPs / (speed * efficiency), 3 * batches * weight_bytes / memory bandwidth)
              + batches * launch time
    energy = compute power * compute time + radio power * transfer times + tails

All of it are plain functions of plain numbers; nothing here depends on the machine that simulates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from fedsim.availability import advance
from fedsim.devices.fleet import Device

STAGES = ("download", "train", "upload")
Change = Callable[[float], tuple[bool, float]]
"""For a time: whether the client is available, and when that ends."""


@dataclass(frozen=True)
class Work:
    """What a client was asked to do.

    Attributes:
        down_bytes: Encoded bytes to the client.
        up_bytes: Encoded bytes to the server.
        flops: Of all batches, forward and backward.
        batches: Calls of the model, each with its launch time.
        examples: Rows trained, repeats included.
        weight_bytes: All weights of the model, which each batch reads three times.
    """

    down_bytes: int = 0
    up_bytes: int = 0
    flops: float = 0.0
    batches: int = 0
    examples: int = 0
    weight_bytes: int = 0


@dataclass(frozen=True)
class Trip:
    """One client's way through a round; what was not done is not charged.

    Attributes:
        start_s: When the server sent the message.
        end_s: When the answer arrived, or the client gave up.
        download_s: Time spent receiving; likewise ``compute_s`` and ``upload_s``.
        wait_s: Time in which the started client was not available.
        down_bytes: Bytes that were received; likewise ``up_bytes``.
        energy_j: Of computing, radio and waiting.
        stopped: The stage in which the client vanished, or the empty string.
    """

    start_s: float
    end_s: float
    download_s: float
    compute_s: float
    upload_s: float
    wait_s: float
    down_bytes: int
    up_bytes: int
    energy_j: float
    stopped: Literal["", "download", "train", "upload"] = ""

    @property
    def elapsed_s(self) -> float:
        """From message to answer."""
        return self.end_s - self.start_s


def compute_s(device: Device, work: Work) -> float:
    """Time of the training itself."""
    launches = work.batches * device.launch_s
    if device.inference_s is not None:
        return 3 * work.examples * device.inference_s + launches
    floor = 3 * work.batches * work.weight_bytes / device.memory_bytes_per_s
    return max(work.flops / device.flops_per_s, floor) + launches


def overlapped_s(trips: Sequence[Trip], uploading_s: float | None) -> tuple[float, float]:
    """What a round takes whose clients train while the answers of the round before travel.

    The longer of training and communication, which is the last cohort's upload and then a download,
    timed as that of this cohort since the next is not chosen yet. Nothing is hidden in the first
    round, and only one round's messages are on the links at a time.

    Args:
        trips: Of this round's clients; each wait counts as training.
        uploading_s: Longest upload of the round before; None in the first round.

    Returns:
        Seconds, and the longest upload of this round, which is still to come.
    """
    training = max((t.compute_s + t.wait_s for t in trips), default=0.0)
    download = max((t.download_s for t in trips), default=0.0)
    upload = max((t.upload_s for t in trips), default=0.0)
    hidden = download + training if uploading_s is None else max(training, uploading_s + download)
    return hidden, upload


def transfer_s(num_bytes: float, mbps: float, overhead: float = 1.0) -> float:
    """Time of a transfer.

    >>> round(transfer_s(1_180_000, 10), 6)
    0.944
    """
    return 8 * num_bytes * overhead / (mbps * 1e6)


def trip(
    device: Device,
    work: Work,
    start_s: float = 0.0,
    *,
    change: Change | None = None,
    pause: bool = True,
    vanish: float | None = None,
) -> Trip:
    """A client's way through a round.

    Args:
        device: The client's device and link.
        work: What it does.
        start_s: When the server sends the message.
        change: The client's presence; without it, the client stays.
        pause: Whether absence interrupts the work, or ends it.
        vanish: Part of the work after which the client vanishes for good.
    """
    down = device.latency_s + transfer_s(work.down_bytes, device.down_mbps, device.overhead)
    stages = (
        down if work.down_bytes else 0.0,
        compute_s(device, work),
        transfer_s(work.up_bytes, device.up_mbps, device.overhead),
    )
    limit = math.inf if vanish is None else vanish * sum(stages)
    if change is not None and not pause:
        is_on, until = change(start_s)
        limit = min(limit, until - start_s if is_on else 0.0)
    done = _cut(stages, limit)
    stopped = next((s for s, a, b in zip(STAGES, done, stages, strict=True) if a < b), "")
    if change is not None and pause:
        end_s = advance(done, start_s, change)[-1]
    else:
        end_s = start_s + sum(done)
    return _charged(device, work, stages, done, start_s, end_s, stopped)


def _cut(stages: Sequence[float], limit: float) -> tuple[float, ...]:
    """What of each stage is done when only ``limit`` seconds are worked."""
    done = []
    for length in stages:
        done.append(min(length, limit))
        limit -= done[-1]
    return tuple(done)


def _charged(
    device: Device,
    work: Work,
    stages: Sequence[float],
    done: Sequence[float],
    start_s: float,
    end_s: float,
    stopped: str,
) -> Trip:
    down, compute, up = done
    parts = [a / b if b else 1.0 for a, b in zip(done, stages, strict=True)]
    finished = [True, parts[0] == 1.0, parts[0] == parts[1] == 1.0]
    received = math.floor(work.down_bytes * parts[0])
    sent = math.floor(work.up_bytes * parts[2]) if finished[2] else 0
    wait = max(0.0, end_s - start_s - sum(done))
    energy = (
        device.receive_w * transfer_s(received, device.down_mbps, device.overhead)
        + device.send_w * transfer_s(sent, device.up_mbps, device.overhead)
        + device.compute_w * compute
        + device.idle_w * (wait if math.isfinite(wait) else 0.0)
        + device.tail_j * ((received > 0) + (sent > 0))
    )
    return Trip(start_s, end_s, down, compute, up, wait, received, sent, energy, stopped)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Settled:
    """How a round ended.

    Attributes:
        kept: Places of the answers that count, in the order in which they came.
        late: Places of those that would have come later.
        end_s: When the server went on.
    """

    kept: tuple[int, ...]
    late: tuple[int, ...]
    end_s: float


def settle(
    ends: Sequence[float],
    answers: Sequence[bool],
    start_s: float,
    goal: int,
    deadline_s: float | None = None,
) -> Settled:
    """Who is in time: the first ``goal`` answers before the deadline.

    The round ends with the last answer that is needed, else at the deadline; without one, when the
    last client has answered or is known to have vanished.

    Args:
        ends: When each client answered or gave up.
        answers: Whether it answered.
        start_s: When the round began.
        goal: Answers wanted.
        deadline_s: Longest time of a round.

    >>> settle([5.0, 9.0, 30.0], [True, True, True], 0.0, 2)
    Settled(kept=(0, 1), late=(2,), end_s=9.0)
    """
    limit = start_s + (math.inf if deadline_s is None else deadline_s)
    order = sorted((end, i) for i, end in enumerate(ends) if answers[i])
    kept = tuple(i for end, i in order if end <= limit)[:goal]
    late = tuple(i for _, i in order if i not in set(kept))
    if len(kept) == goal or not ends:
        end_s = max((ends[i] for i in kept), default=start_s)
    else:
        end_s = min(limit, max(ends))
    return Settled(kept, late, end_s)
