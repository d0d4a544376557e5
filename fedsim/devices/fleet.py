"""The fleet: every client's device as a pure function of seed, client and round.

Nothing is kept per client, so a fleet of a million costs what a fleet of ten costs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from fedsim.availability import Recorded
from fedsim.devices import profiles, tables, traces
from fedsim.devices.profiles import Mode, Network, Profile, Rate
from fedsim.devices.section import DevicesSection, MixEntry
from fedsim.errors import FedsimError, PluginError, did_you_mean
from fedsim.seeds import Seeds

SLOWEST = 0.05
"""A link's rate in a round is at least this part of the client's own mean."""


@dataclass(frozen=True)
class Device:
    """One client's device and link in one round.

    Attributes:
        client: Index of the client.
        profile: Name of the profile or of the table's row.
        mode: Power mode, or the empty string.
        flops_per_s: What training reaches.
        inference_s: Measured time of one example; then FLOPs do not matter.
        memory_bytes: What training may use.
    """

    client: int
    profile: str
    mode: str
    flops_per_s: float
    launch_s: float
    inference_s: float | None
    memory_bytes: int
    memory_bytes_per_s: float
    down_mbps: float
    up_mbps: float
    latency_s: float
    overhead: float
    compute_w: float
    idle_w: float
    receive_w: float
    send_w: float
    tail_j: float


@dataclass(frozen=True)
class _Kind:
    name: str
    profile: Profile
    network: Network
    mode: str | None = None


@dataclass(frozen=True)
class Fleet:
    """The devices of a scenario's clients.

    Args:
        section: The scenario's ``devices``.
        seeds: Streams of the run.
        num_clients: Over which the shares of a mix are dealt out, exactly up to rounding.
    """

    section: DevicesSection
    seeds: Seeds
    num_clients: int

    def device(self, client: int, server_round: int = 1) -> Device:
        """The device of a client in a round."""
        kind = self.kinds[self.kind_of(client)]
        name, mode = self._mode(kind, client, server_round)
        profile, network = kind.profile, kind.network
        down = self._rate("downlink", network.downlink_mbps, client, server_round)
        up = self._rate("uplink", network.uplink_mbps, client, server_round)
        radio = network.radio_mw
        receive_w = (radio + network.down_mw_per_mbps * down) / 1000
        send_w = (radio + network.up_mw_per_mbps * up) / 1000
        jitter = self._jitter(profile, client)
        return Device(
            client=client,
            profile=kind.name,
            mode=name,
            flops_per_s=profile.peak_gflops * 1e9 * profile.efficiency * mode.speed * jitter,
            launch_s=profile.launch_s / mode.speed,
            inference_s=None
            if profile.inference_ms is None
            else profile.inference_ms / 1000 / (mode.speed * jitter),
            memory_bytes=int(profile.usable_memory_gb * 1e9),
            memory_bytes_per_s=profile.memory_gb_per_s * 1e9,
            down_mbps=down,
            up_mbps=up,
            latency_s=network.latency_s,
            overhead=network.overhead,
            compute_w=mode.compute_w,
            idle_w=profile.idle_w,
            receive_w=receive_w if profile.radio_w is None else profile.radio_w,
            send_w=send_w if profile.radio_w is None else profile.radio_w,
            tail_j=network.tail_j,
        )

    def kind_of(self, client: int) -> int:
        """Which entry of the mix, or row of the table, a client has."""
        place = (client * self._stride + self._offset) % self.num_clients
        if self.section.table is not None:
            return place % len(self.kinds)
        return int(np.searchsorted(self._bounds, (place + 0.5) / self.num_clients, side="right"))

    @cached_property
    def kinds(self) -> tuple[_Kind, ...]:
        """The entries of the mix, or the rows of the table, with their profiles read.

        Raises:
            FedsimError: A profile, network, mode or file is unknown or wrong; ``key`` says where.
        """
        section = self.section
        if section.table is not None:
            with _blamed("table"):
                name = section.network if isinstance(section.network, str) else None
                rows = tables.read(section.table, section.base, name)
            return tuple(_Kind(row.name, row.profile, row.network) for row in rows)
        return tuple(self._entry(i, entry) for i, entry in enumerate(section.mix))

    def _entry(self, i: int, entry: MixEntry) -> _Kind:
        with _blamed("mix", i, "profile"):
            profile = profiles.profile(entry.profile)
        named = entry.network or self.section.network or profile.network
        own = ("mix", i, "network") if entry.network else ("network",)
        with _blamed(*own):
            network = named if isinstance(named, Network) else profiles.network(named)
        if entry.mode is not None and entry.mode not in profile.modes:
            raise PluginError(
                f"profile '{entry.profile}' has no power mode '{entry.mode}'",
                key=("devices", "mix", i, "mode"),
                hint=did_you_mean(entry.mode, profile.modes),
                allowed=f"Modes: {', '.join(profile.modes) or 'none'}",
            )
        return _Kind(entry.profile.rsplit("/", 1)[-1], profile, network, entry.mode)

    def _mode(self, kind: _Kind, client: int, server_round: int) -> tuple[str, Mode]:
        modes = kind.profile.modes
        if not modes:
            return "", Mode(speed=1.0, compute_w=kind.profile.compute_w)
        names = list(modes)
        name = kind.mode or names[0]
        if self.section.mode_rounds and not kind.mode:
            turn = (server_round - 1) // self.section.mode_rounds
            name = names[int(self._draw("mode", client, turn) * len(names))]
        return name, modes[name]

    def _jitter(self, profile: Profile, client: int) -> float:
        own = self.section.speed_sigma
        sigma = profile.speed_sigma if own is None else own
        return math.exp(sigma * self._normal("speed", client)) if sigma else 1.0

    def _rate(self, way: str, rate: float | Rate, client: int, server_round: int) -> float:
        if not isinstance(rate, Rate):
            return rate
        if rate.median is not None:
            mean = rate.median * math.exp(rate.sigma * self._normal(way, client))
        else:
            assert rate.low is not None
            assert rate.high is not None
            mean = rate.low + (rate.high - rate.low) * self._draw(way, client)
        if not rate.round_cv:
            return mean
        swing = 1 + rate.round_cv * self._normal(f"{way} in time", client, server_round)
        return mean * max(SLOWEST, swing)

    def _draw(self, name: str, *index: int) -> float:
        return float(self.seeds.uniforms(f"device {name}", *index))

    def _normal(self, name: str, *index: int) -> float:
        return float(self.seeds.normals(f"device {name}", *index))

    @cached_property
    def _bounds(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return np.cumsum([entry.share for entry in self.section.mix])[:-1]

    @cached_property
    def _stride(self) -> int:
        """Coprime to the number of clients: client ids are dealt out in a mixed order."""
        stride = int(self._draw("order") * self.num_clients) or 1
        while math.gcd(stride, self.num_clients) != 1:
            stride += 1
        return stride

    @cached_property
    def _offset(self) -> int:
        return int(self._draw("first") * self.num_clients)


def check(section: DevicesSection) -> None:
    """Read all that a section names.

    Raises:
        FedsimError: A profile, network, mode or file is unknown or wrong.
    """
    assert Fleet(section, Seeds(0), 1).kinds
    if isinstance(section.availability, Recorded):
        with _blamed("availability", "file"):
            traces.presence(section.availability.file)


def shared(device: Device, section: DevicesSection, concurrent: int) -> Device:
    """A device whose link gets at most its part of the server's bandwidth."""
    server = section.server
    return replace(
        device,
        down_mbps=min(device.down_mbps, (server.uplink_mbps or math.inf) / concurrent),
        up_mbps=min(device.up_mbps, (server.downlink_mbps or math.inf) / concurrent),
    )


@contextmanager
def _blamed(*key: str | int) -> Iterator[None]:
    """Say which key of the section named what is wrong."""
    try:
        yield
    except FedsimError as error:
        error.key = ("devices", *key)
        raise
