"""The base of everything that users write in YAML: frozen values with a fixed set of keys."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, NonNegativeInt

from fedsim.errors import ScenarioError


class Section(BaseModel):
    """A part of a scenario, or of another YAML file, with a fixed set of keys."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )


class Plugin(BaseModel):
    """A plug-in: ``name`` and its constructor's arguments. A plain string is short for a name."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    name: str
    """File name of a plug-in, an entry point, or ``module:Class``."""

    @property
    def options(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return dict(self.model_extra or {})

    @property
    def section(self) -> dict[str, Any]:
        """Name and options in one mapping, as ``registry.build`` takes it."""
        return {"name": self.name, **self.options}


def named(value: Any) -> Any:
    """A plain string is short for a mapping with that ``name``."""
    return {"name": value} if isinstance(value, str) else value


NamedPlugin = Annotated[Plugin, BeforeValidator(named, json_schema_input_type=Plugin | str)]


def _unlike(seeds: tuple[int, ...]) -> tuple[int, ...]:
    for seed in seeds:
        if seeds.count(seed) > 1:
            what = f"seed {seed} stands twice in 'seeds'"
            raise ScenarioError(what, key=("seeds",), hint="Equal seeds give equal bits")
    return seeds


UnlikeSeeds = Annotated[tuple[NonNegativeInt, ...], AfterValidator(_unlike)]
