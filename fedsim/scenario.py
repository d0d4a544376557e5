"""Scenario files: what a run is made of, as frozen data.

``load`` reads YAML once: parents (``extends:``), then the file, then dotted overrides; local keys
win. The merged mapping is checked by the models below, and each error names file and line. A
section with ``name:`` is a plug-in whose other keys are its constructor's arguments; naming another
plug-in than the parent's drops the parent's options of that section. A codec or tracker that is
named stands for the whole list, so nothing of the parent's is left, error feedback included.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PrivateAttr,
    ValidationError,
    model_validator,
)
from ruamel.yaml import YAML

from fedsim import layers, partners, wording
from fedsim.devices.section import DevicesSection
from fedsim.errors import FedsimError, Key, ScenarioError
from fedsim.sections import NamedPlugin as NamedPlugin
from fedsim.sections import Plugin as Plugin
from fedsim.sections import Section as Section
from fedsim.sections import UnlikeSeeds
from fedsim.trials import SweepSection

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
OpenFraction = Annotated[float, Field(ge=0.0, lt=1.0)]


def _chain(value: Any) -> Any:
    return [] if value in (None, "none") else value if isinstance(value, list) else [value]


Chain = Annotated[
    tuple[NamedPlugin, ...],
    BeforeValidator(_chain, json_schema_input_type=list[Plugin | str] | Plugin | str | None),
]


def _unless_none(value: Any) -> Any:
    return None if value == "none" else value


Options = Annotated[
    dict[str, Any] | None,
    BeforeValidator(_unless_none, json_schema_input_type=dict[str, Any] | Literal["none"] | None),
]


class TokenizerSection(Section):
    """Where token ids come from.

    ``name`` is a Hub id or a folder; without it, a byte-level BPE of ``vocab_size`` entries is
    trained on the task's training text.
    """

    name: str | None = None
    vocab_size: PositiveInt = 1024


class WarmStartSection(Section):
    """Training on the server before round 1, on a public part that no client owns.

    ``fraction`` of the training rows becomes public; all parameters are trained on it. The result
    is cached by content hash in the user's cache directory.
    """

    fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    epochs: PositiveInt = 5
    batch_size: PositiveInt = 32
    optimizer: str = "AdamW"
    learning_rate: PositiveFloat = 1e-3


class ModelSection(Section):
    """The network and which of its parameters are trained.

    Exactly one of ``name`` (Hub id, local folder, or ``module:function``) and ``config`` (the
    arguments of a transformers configuration, with ``model_type``; random weights).
    """

    name: str | None = None
    config: dict[str, Any] | None = None
    options: dict[str, Any] = {}
    """Arguments for ``module:function``; of a pretrained model, options of its configuration, such
    as ``hidden_dropout_prob: 0.0``."""
    how_to_get: str = ""
    """Shown when the model cannot be found."""
    tokenizer: TokenizerSection | None = None
    peft: Options = None
    """``peft_type`` and that configuration's own options; none trains all parameters."""
    trainable: tuple[str, ...] = ()
    """Patterns (``fnmatch``) of parameters to train instead of all; only with ``peft: none``."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of frozen weights and activations; bfloat16 changes results by rounding, and is faster
    only where the hardware multiplies it."""
    memory_format: Literal["contiguous_format", "channels_last"] = "contiguous_format"
    """Layout of images, as torch names it; channels_last can make convolutions and pooling faster,
    and changes results by rounding."""
    compile: bool = False
    """Compile the model with torch: minutes once for each shape of batch, and other last bits."""
    warm_start: Annotated[
        WarmStartSection | None,
        BeforeValidator(
            _unless_none, json_schema_input_type=WarmStartSection | Literal["none"] | None
        ),
    ] = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.name is None) == (self.config is None):
            raise ScenarioError("give exactly one of 'name' and 'config'", key=("model",))
        if self.peft is not None and "peft_type" not in self.peft:
            raise ScenarioError(
                "peft needs 'peft_type', for example LORA",
                key=("model", "peft"),
                hint="See `fedsim list peft`, or say 'peft: none' to train all parameters",
            )
        if self.peft is not None and self.trainable:
            raise ScenarioError(
                "'trainable' goes with 'peft: none'",
                key=("model", "trainable"),
                hint="Leave it out: peft types choose what is trained",
            )
        return self


class DataSection(Section):
    """Rows and who owns them; names as in ``datasets.load_dataset`` and flwr-datasets."""

    path: str
    """Hub id, ``csv | json | parquet | text`` with data_files, ``idx`` (MNIST format),
    ``sklearn:<set>``, or ``module:function``."""
    name: str | None = None
    """Configuration of a Hub data set."""
    data_dir: str | None = None
    data_files: str | dict[str, str | list[str]] | None = None
    revision: str | None = None
    options: dict[str, Any] = {}
    """Arguments for ``module:function``."""
    how_to_get: str = ""
    """Shown when a file is missing."""
    train_split: str = "train"
    test_split: str = "test"
    test_fraction: OpenFraction = 0.2
    """Held out as global test set when the data has no ``test_split``."""
    client_test_fraction: OpenFraction = 0.0
    """Part of each client's rows kept for its own test."""
    partitioner: NamedPlugin = Plugin(name="iid")
    """Who owns which rows; see `fedsim list partitioners`."""


class LGrecoSection(Section):
    """Set the uplink codec's density, bits or rank for each array, by dynamic programming.

    The codec's own value is the reference: its error on the last change of the weights, summed over
    arrays, is what the plan may cost.
    """

    every: PositiveInt = 10
    """Rounds between plans."""
    slack: PositiveFloat = 1.0
    """Error budget in units of the reference's error."""
    squared: bool = False
    """Add up squared errors instead of errors."""
    buckets: Annotated[int, Field(ge=100, le=1_000_000)] = 10_000
    """Resolution of the dynamic program."""


class CodecSection(Section):
    """How updates are packed, in each direction."""

    up: Chain = ()
    down: Chain = ()
    by_layer: bool = False
    """Also count bytes by array, as ``comm/up_values_bytes/<array>`` in rounds.jsonl."""
    lgreco: LGrecoSection | None = None


class EvaluateSection(Section):
    """When the model is tested."""

    every: PositiveInt = 1
    """Rounds between tests on the global test set; the first and the last round are tested."""
    personal: bool = False
    """Also test on clients' own test splits (needs ``data.client_test_fraction``)."""
    fraction_evaluate: Fraction = 1.0
    """Share of clients asked when ``personal`` is on."""
    batch_size: PositiveInt = 64


class CheckpointSection(Section):
    """When a run saves itself, so that ``fedsim resume`` can continue it."""

    every: PositiveInt = 10
    """Rounds between checkpoints; Ctrl-C and the last round write one, too."""
    keep: PositiveInt = 2
    """Checkpoints that are kept; the one before guards against a torn file."""


class EngineSection(Section):
    """Where and how the work is executed; no value here changes a result, except that a GPU rounds
    otherwise than a CPU."""

    backend: Literal["ray", "inline"] = "ray"
    workers: PositiveInt | Literal["auto"] = "auto"
    start_method: Literal["forkserver", "spawn"] = "forkserver"
    """As in multiprocessing: on Linux, workers of a local Ray are copies of a process that has
    loaded the libraries, where it is safe to copy one; or each loads them for itself."""
    address: str = "local"
    """``local`` starts Ray on this machine only; another address joins a running cluster."""
    cpus_per_worker: PositiveFloat = 1.0
    """CPUs that Ray reserves for a worker; may be a fraction."""
    gpus_per_worker: NonNegativeFloat = 0.0
    """GPUs that Ray reserves for a worker, a fraction to share one; above 0, models run on it."""
    threads_per_worker: PositiveInt = 1
    client_timeout_s: PositiveFloat | None = None
    """A client that works longer than this has failed; none waits for ever."""
    client_state_mb: PositiveFloat = 1024.0
    """Memory for clients' private states; what is more lies in files."""
    cache_prefix: bool = True
    """Keep what frozen lower layers answer to rows, or compute it again in every round."""


class Scenario(Section):
    """One study: everything that decides the result of a run."""

    name: str = "run"
    """Names the folder of runs; the file's name by default."""
    seed: NonNegativeInt = 0
    """Root of all random numbers."""
    seeds: UnlikeSeeds = ()
    """Repeat the run with each of these seeds."""
    tags: tuple[str, ...] = ()
    """Words to find the run by."""
    num_rounds: PositiveInt
    """Rounds of training."""
    num_clients: PositiveInt | None = None
    """May be left out where the partitioner fixes the number (natural splits)."""
    clients_per_round: PositiveInt | None = None
    """Clients that train in a round, or at any time under an asynchronous strategy; all of them by
    default."""
    fraction_train: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Instead of a number, the share of clients that train in a round."""
    max_failed_fraction: Fraction = 0.5
    """The run stops (exit code 3) when more than this share of a round's clients failed, or of the
    latest 20 answers to an asynchronous strategy."""
    task: NamedPlugin
    """What is learnt from which columns; see `fedsim list tasks`."""
    model: ModelSection
    data: DataSection
    client: NamedPlugin = Plugin(name="sgd")
    """What clients do in a round; see `fedsim list clients`."""
    log_steps: bool = False
    """Write a line for each local step to steps.jsonl: its loss; of zeroth-order clients also seed
    and scalar."""
    mods: tuple[str, ...] = ()
    """Flower client mods around training, outermost first: ``flwr.clientapp.mod:...``."""
    strategy: NamedPlugin = Plugin(name="fedavg")
    """How the server aggregates; see `fedsim list strategies`. An asynchronous strategy has updates
    of the server in place of rounds, wherever a key counts rounds."""
    codec: CodecSection = CodecSection()
    devices: DevicesSection | None = None
    """What clients run on; without it, nothing is timed but the simulation itself."""
    evaluate: EvaluateSection = EvaluateSection()
    checkpoint: CheckpointSection = CheckpointSection()
    engine: EngineSection = EngineSection()
    track: Chain = ()
    """Where the run's numbers go besides its folder; see `fedsim list trackers`."""
    sweep: SweepSection | None = None
    """Values that `fedsim sweep` tries."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.clients_per_round and self.fraction_train:
            raise ScenarioError(
                "give clients_per_round or fraction_train, never both", key=("fraction_train",)
            )
        if self.num_clients and (self.clients_per_round or 0) > self.num_clients:
            raise ScenarioError(
                f"clients_per_round ({self.clients_per_round}) is more than "
                f"num_clients ({self.num_clients})",
                key=("clients_per_round",),
                hint="Lower it, or leave it out to choose all clients",
            )
        if self.evaluate.personal and not self.data.client_test_fraction:
            raise ScenarioError(
                "clients have no test rows: data.client_test_fraction is 0",
                key=("evaluate", "personal"),
                hint="Set data.client_test_fraction, for example to 0.2",
            )
        return self

    _places: dict[Key, str] = PrivateAttr(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        """Whether all values are equal, wherever they were written."""
        return isinstance(other, Scenario) and self.model_dump() == other.model_dump()

    def where(self, key: Iterable[str | int]) -> str:
        """``file:line`` of a key, for errors found after loading."""
        return layers.Layer(places=self._places).where(key)

    def cohort_size(self, num_clients: int) -> int:
        """Clients per round out of ``num_clients``; all of them when the scenario names neither."""
        if self.clients_per_round:
            return min(self.clients_per_round, num_clients)
        return max(1, round((self.fraction_train or 1.0) * num_clients))

    def to_yaml(self) -> str:
        """The scenario as YAML; loading it gives an equal scenario."""
        stream = io.StringIO()
        _writer().dump(self.model_dump(mode="json", exclude_unset=True), stream)
        return stream.getvalue()

    def digest(self) -> str:
        """Eight hex digits that identify the scenario."""
        return hashlib.blake2b(self.to_yaml().encode(), digest_size=4).hexdigest()


def _writer() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 100
    return yaml


def engine_and_model(
    path: str | Path, overrides: Iterable[str] = ()
) -> tuple[EngineSection, ModelSection] | None:
    """These sections alone, before the rest is checked, whose plug-ins take seconds.

    None where one is wrong; ``load`` says how.
    """
    try:
        values = layers.read(layers.find_scenario(path), overrides).values
        engine = EngineSection.model_validate(values.get("engine") or {})
        return engine, ModelSection.model_validate(values.get("model"))
    except (FedsimError, ValidationError):
        return None


def load(path: str | Path, overrides: Iterable[str] = ()) -> Scenario:
    """Read a scenario file with its parents and overrides, and check it.

    Plug-in options are checked against their constructors, and client and strategy against each
    other; data and model are not touched.

    Args:
        path: A YAML file, or the name of a shipped scenario (``quickstart``).
        overrides: ``a.b=value`` strings; the value is YAML.

    Raises:
        ScenarioError: Anything wrong, with file and line.
    """
    file = layers.find_scenario(path)
    layer = layers.read(file, overrides)
    layer.values.setdefault("name", file.stem)
    if layer.values.get("sweep") is None:
        layer.values.pop("sweep", None)
    try:
        scenario = Scenario.model_validate(layer.values)
        partners.check(scenario)
    except ValidationError as error:
        fault = wording.scenario_error(error, layer.values, Scenario)
        raise fault.at(layer.where(fault.key) or str(file)) from None
    except FedsimError as error:
        raise error.at(layer.where(error.key) or str(file)) from None
    scenario._places.update(layer.places)
    return scenario


def json_schema() -> dict[str, Any]:
    """The JSON Schema of scenario files, for editors; any key may be left to a parent."""
    schema = Scenario.model_json_schema()
    for section in (schema, *schema["$defs"].values()):
        section.pop("required", None)
    text = {"type": "string"}
    schema["properties"]["extends"] = {
        "description": "Files, beside this one or shipped, whose keys hold where this one has none",
        "anyOf": [text, {"type": "array", "items": text}],
    }
    return schema
