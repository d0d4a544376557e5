"""The scenario's ``devices:`` section: who the clients are, and what a round asks of them."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from fedsim.availability import Always, Availability
from fedsim.devices.profiles import Network, Sigma
from fedsim.errors import ScenarioError
from fedsim.sections import NamedPlugin, Plugin, Section, named


class MixEntry(Section):
    """One kind of device and how many of the clients have it."""

    profile: str
    """A shipped profile (`fedsim list profiles`), or a YAML file."""
    share: Annotated[float, Field(ge=0.0, le=1.0)]
    """Part of the clients; the shares of a mix sum to 1."""
    network: str | Network | None = None
    """A shipped network (`fedsim list networks`), a YAML file, or its figures."""
    mode: str | None = None
    """A power mode of the profile to stay in."""


class ServerSection(Section):
    """The server, where its own limits matter; unlimited by default."""

    uplink_mbps: PositiveFloat | None = None
    """What all clients of a round share while they download."""
    downlink_mbps: PositiveFloat | None = None
    """What all clients of a round share while they upload."""
    round_s: NonNegativeFloat = 0.0
    """Time of the server between two rounds (aggregation, tests)."""


class DevicesSection(Section):
    """Devices, networks, presence and the rules of a round, on a virtual clock.

    Exactly one of ``mix`` and ``table``.
    """

    mix: tuple[MixEntry, ...] = ()
    table: str | None = None
    """CSV or JSON of measured devices, or FedScale's capacity trace as JSON; every device is used
    equally often."""
    base: str = "phone-mid"
    """Profile that fills what a table leaves out."""
    network: str | Network | None = None
    """Network of all clients whose mix entry names none; else the profile's."""
    speed_sigma: Sigma | None = None
    """Standard deviation of the logarithm of the speed over clients, instead of the profiles'."""
    mode_rounds: PositiveInt | None = None
    """Redraw every device's power mode after so many rounds; by default the first mode stays."""
    availability: Annotated[
        Availability, BeforeValidator(named, json_schema_input_type=Availability | str)
    ] = Always()
    """When clients can take part."""
    interruption: Literal["pause", "abort"] = "pause"
    """A client that becomes unavailable at work goes on later, or has lost its work."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Probability that a chosen client vanishes in the middle of its work."""
    selection: NamedPlugin = Plugin(name="uniform")
    """How the server chooses among available clients; see `fedsim list selectors`."""
    deadline_s: PositiveFloat | None = None
    """The server waits no longer than this in a round."""
    over_selection: Annotated[float, Field(ge=1.0, le=10.0)] = 1.0
    """Choose this many times the wanted clients, and keep the first to answer."""
    min_replies: NonNegativeInt = 1
    """With fewer answers, a round changes nothing."""
    out_of_memory: Literal["leave_out", "accumulate"] = "leave_out"
    """A client whose device cannot hold its batch does nothing, or trains with smaller batches
    whose gradients it adds up."""
    server: ServerSection = ServerSection()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if bool(self.mix) == (self.table is not None):
            raise ScenarioError("give exactly one of 'mix' and 'table'", key=("devices",))
        total = math.fsum(entry.share for entry in self.mix)
        if self.mix and abs(total - 1) > 1e-6:
            last = self.mix[-1].share + 1 - total
            raise ScenarioError(
                f"the shares of the mix sum to {total:g}, not to 1",
                key=("devices", "mix"),
                hint=f"With {last:g} as the last share they would"
                if last >= 0
                else f"Divided by {total:g} they would",
            )
        return self

    @property
    def leaves_out(self) -> bool:
        """Whether a client that trained may be left out of the round's result."""
        limited = self.deadline_s is not None or self.over_selection > 1 or self.min_replies > 1
        comes_and_goes = not isinstance(self.availability, Always)
        return limited or self.dropout > 0 or (comes_and_goes and not self.availability.by_round)
