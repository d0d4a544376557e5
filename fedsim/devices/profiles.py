"""Profiles of devices and networks: a dozen figures each, with the unit in the key.

A profile is a YAML file with a ``source`` that says where its figures come from. Shipped ones lie
in ``scenarios/devices/`` and ``scenarios/devices/networks/``; their file name is their name.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, NonNegativeFloat, PositiveFloat, ValidationError, model_validator

from fedsim import layers, wording
from fedsim.errors import PluginError, ScenarioError, did_you_mean
from fedsim.sections import Section

SHIPPED = Path(__file__).parents[1] / "scenarios" / "devices"
Share = Annotated[float, Field(gt=0.0, le=1.0)]
Sigma = Annotated[float, Field(ge=0.0, le=10.0)]
"""Standard deviation of a logarithm; 10 is far beyond any devices."""


class Rate(Section):
    """A rate that differs from client to client, and maybe from round to round.

    Either log-normal (``median``, ``sigma``) or uniform (``low``, ``high``).
    """

    median: PositiveFloat | None = None
    sigma: Sigma = 0.0
    """Standard deviation of the logarithm over clients."""
    low: PositiveFloat | None = None
    high: PositiveFloat | None = None
    round_cv: NonNegativeFloat = 0.0
    """Standard deviation from round to round, relative to the client's own mean."""

    @model_validator(mode="after")
    def _one_shape(self) -> Self:
        uniform = self.low is not None and self.high is not None
        if (self.median is None) == (not uniform) or (self.low is None) != (self.high is None):
            raise ValueError("give either 'median' (with 'sigma') or both 'low' and 'high'")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"'low' ({self.low:g}) is above 'high' ({self.high:g})")
        return self


class Network(Section):
    """A way to the server, and what its radio draws."""

    downlink_mbps: PositiveFloat | Rate
    """From the server to the client, in megabits per second."""
    uplink_mbps: PositiveFloat | Rate
    """From the client to the server."""
    latency_s: NonNegativeFloat = 0.0
    """Time to the first byte, once in a round trip."""
    overhead: Annotated[float, Field(ge=1.0, le=2.0)] = 1.0
    """Bytes on the wire for one byte of payload (headers, encryption)."""
    radio_mw: NonNegativeFloat = 0.0
    """Power of the radio while it sends or receives, at no throughput."""
    up_mw_per_mbps: NonNegativeFloat = 0.0
    """Further power for each Mb/s sent."""
    down_mw_per_mbps: NonNegativeFloat = 0.0
    """Further power for each Mb/s received."""
    tail_j: NonNegativeFloat = 0.0
    """Energy to wake the radio and to let it sleep, for each transfer."""
    source: str
    """Where the figures come from."""


class Mode(Section):
    """A power mode of a board."""

    speed: Share
    """Relative to the profile's ``peak_gflops``."""
    compute_w: PositiveFloat


class Profile(Section):
    """A device."""

    kind: Literal["phone", "board", "laptop", "edge"]
    year: Annotated[int, Field(ge=2000, le=2100)]
    peak_gflops: PositiveFloat
    """Peak of what trains (GPU or CPU) in 32-bit GFLOP/s."""
    efficiency: Share
    """Part of the peak that training reaches."""
    launch_s: NonNegativeFloat
    """Time that every batch takes whatever its size."""
    inference_ms: PositiveFloat | None = None
    """Measured inference time of one example; then a batch takes three times this for each of its
    examples (FedScale's rule), and FLOPs do not matter."""
    memory_gb: PositiveFloat
    memory_gb_per_s: PositiveFloat
    """Memory bandwidth: no batch is faster than reading the weights three times."""
    usable_memory_gb: PositiveFloat
    """What training may use of it."""
    compute_w: PositiveFloat
    """Power while training."""
    idle_w: NonNegativeFloat = 0.0
    """Power while a started task waits for the device to be available again."""
    radio_w: NonNegativeFloat | None = None
    """Power while sending or receiving, instead of the network's figures."""
    speed_sigma: Sigma = 0.0
    """Standard deviation of the logarithm of the speed over clients with this profile."""
    network: str = "wifi"
    """The network it has when the scenario names none."""
    modes: Mapping[str, Mode] = {}
    """Power modes; the first one is used where the scenario does not redraw them."""
    source: str
    """Where the figures come from."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.usable_memory_gb > self.memory_gb:
            raise ValueError(
                f"'usable_memory_gb' ({self.usable_memory_gb:g}) is more than 'memory_gb' "
                f"({self.memory_gb:g})"
            )
        return self


T = TypeVar("T", Profile, Network)


@cache
def profile(name: str) -> Profile:
    """A shipped profile, or one of a YAML file.

    Raises:
        ScenarioError: There is none, or a figure is missing or wrong.
    """
    return _read(Profile, _file("profile", name, SHIPPED))


@cache
def network(name: str) -> Network:
    """A shipped network, or one of a YAML file.

    Raises:
        ScenarioError: There is none, or a figure is missing or wrong.
    """
    return _read(Network, _file("network", name, SHIPPED / "networks"))


def names(kind: str) -> dict[str, Path]:
    """Shipped ``profiles`` or ``networks`` by name."""
    folder = SHIPPED if kind == "profiles" else SHIPPED / "networks"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def _file(label: str, name: str, folder: Path) -> Path:
    if (folder / f"{name}.yaml").is_file():
        return folder / f"{name}.yaml"
    if name.endswith((".yaml", ".yml")) and Path(name).is_file():
        return Path(name)
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    raise PluginError(
        f"there is no {label} '{name}'",
        hint=did_you_mean(name, known),
        allowed=f"Known: {', '.join(known)}; or the path of a YAML file",
    )


def _read(model: type[T], path: Path) -> T:
    layer = layers.read(path)
    try:
        return model.model_validate(layer.values)
    except ValidationError as error:
        fault = wording.scenario_error(error, layer.values, model)
        raise ScenarioError(
            fault.what,
            where=layer.where(fault.key) or f"{path}:1",
            hint=fault.hint,
            allowed=fault.allowed,
        ) from None


def check_values(model: type[T], values: Mapping[str, Any], where: str) -> T:
    """A profile or network from plain values, such as a row of a table.

    Raises:
        ScenarioError: A figure is missing or wrong.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        fault = wording.scenario_error(error, dict(values), model)
        raise ScenarioError(
            fault.what, where=where, hint=fault.hint, allowed=fault.allowed
        ) from None
