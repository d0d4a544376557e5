"""What averaging the parameters of an adapter means, for every ``peft_type``.

Clients train parameters t_k and the server forms their mean. Is the model with the mean parameters
the mean of the clients' models? Write a wrapped layer as ``W_k = M(t_k)``:

    LIN   M is affine in t: the mean of parameters is exactly the mean of updates
    BIL   M multiplies two or more trained factors: mean of products != product of means
    NL    M is another non-linear map (normalisation, rotation, softmax, a small network)

Kinds were derived from each method's formula; ``gap`` was measured (specification): two clients,
one 24 -> 32 linear layer, independent N(0, 0.3^2) moves of all trained tensors, norm of
``M(mean t) - mean M(t_k)`` relative to the mean update. It illustrates large drift: for BIL it
shrinks with the product of the clients' deviations. The tests measure the kinds again.

This module imports neither torch nor peft at the top: the command line reads it.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from fedsim.errors import ModelError, did_you_mean

Kind = Literal["LIN", "BIL", "NL"]
WORDS: dict[Kind, str] = {
    "LIN": "affine in what is trained",
    "BIL": "a product of trained factors",
    "NL": "a non-linear function of what is trained",
}
INTERNAL = (
    *("peft_type", "auto_mapping", "peft_version"),
    *("base_model_name_or_path", "revision", "inference_mode"),
)
"""Fields of peft's configurations that a scenario does not set."""


@dataclass(frozen=True)
class Averaging:
    """What one adapter method trains and what the mean of its parameters means.

    Attributes:
        kind: LIN, BIL or NL, see the module's documentation.
        gap: Measured relative gap, or None where none was measured.
        trains: What is trained, in words.
        share: What all clients must hold identically, and what else to know.
    """

    kind: Kind
    gap: float | None
    trains: str
    share: str = ""

    @property
    def exact(self) -> bool:
        """Whether the mean of parameters is the mean of updates."""
        return self.kind == "LIN"

    @property
    def word(self) -> str:
        """The verdict in a word or two, for lists."""
        return "exact" if self.exact else f"biased ({self.kind})"


def _lin(trains: str, share: str = "") -> Averaging:
    return Averaging("LIN", 0.0, trains, share)


def _bil(gap: float | None, trains: str, share: str = "") -> Averaging:
    return Averaging("BIL", gap, trains, share)


def _nl(gap: float | None, trains: str, share: str = "") -> Averaging:
    return Averaging("NL", gap, trains, share)


_MUTATED = "the base weights change at the start, so every process must start from the same ones"
_SEEDED = "fixed random projections come from the option's seed"

ENTRIES: dict[str, Averaging] = {
    "ADALORA": _bil(
        0.95,
        "factors B, A and a diagonal between them",
        "ranks stay at init_r, and the penalty term is left out",
    ),
    "ADAMSS": _nl(0.21, "factors in clusters of the weight's subspace", "shapes depend on W"),
    "ADAPTION_PROMPT": _bil(None, "prompts of the top layers and a gate that starts at zero"),
    "BEFT": _lin("biases of the target layers"),
    "BOFT": _nl(0.46, "butterfly factors of a rotation of W"),
    "C3A": _lin("block-circulant kernels", "the start is not the identity: it is seeded"),
    "CARTRIDGE": _lin("key and value vectors in front of every layer's own", "no weight changes"),
    "CPT": _nl(None, "bounded offsets of the context's token embeddings", "causal language models"),
    "DEFT": _nl(0.77, "a projection and its update, as a function of W"),
    "DELORA": _nl(1.0, "normalised rank-one terms and their common strength"),
    "FOURIERFT": _lin(
        "coefficients at fixed frequencies",
        "locations come from random_loc_seed; init_weights: true starts at the identity",
    ),
    "FROD": _lin("sparse coefficients in a joint basis of the layers", _SEEDED),
    "GLORA": _bil(0.30, "scales and shifts of weight and bias"),
    "GRALORA": _bil(0.65, "a grid of small low-rank pairs"),
    "HIRA": _bil(0.71, "factors B and A of a matrix that multiplies W element by element"),
    "HRA": _nl(
        0.68, "directions of reflections", "u and -u are one reflection but average to zero"
    ),
    "IA3": _lin("one factor for each output (attention) or input (feed-forward) feature"),
    "LILY": _nl(0.70, "shared banks of factors A and B, and a router"),
    "LN_TUNING": _lin("a copy of the target modules (linear in the parameters of norm layers)"),
    "LOHA": _nl(0.90, "two low-rank products, multiplied element by element"),
    "LOKR": _bil(0.57, "factors of a Kronecker product"),
    "LORA": _bil(0.69, "factors B and A of an update BA of rank r", "the same seeded start of A"),
    "MISS": _lin("one small block, shared along the rows of W"),
    "MULTITASK_PROMPT_TUNING": _bil(
        None, "a shared prompt times a factor of the task", "all clients are task 0"
    ),
    "OFT": _nl(1.22, "generators of block rotations of W", "the mean stays a rotation"),
    "OSF": _bil(0.63, "the low singular directions of W", "large: most of W's size"),
    "PEANUT": _nl(0.59, "a small network that maps W to its update"),
    "POLY": _nl(
        None, "an inventory of low-rank skills and their routing", "all clients are task 0"
    ),
    "PREFIX_TUNING": _lin(
        "key and value vectors in front of every layer's own", "no weight changes"
    ),
    "PROMPT_TUNING": _lin("embeddings in front of the input", "no weight changes"),
    "PSOFT": _nl(0.47, "a small rotation and scales in W's main subspace", _MUTATED),
    "PVERA": _bil(0.71, "scales of fixed random projections, with sampling", _SEEDED),
    "P_TUNING": _nl(None, "a small network that makes the prompt"),
    "RANDLORA": _bil(
        0.88,
        "scales of many fixed random pairs",
        f"{_SEEDED}; peft draws them in a precision that depends on the machine",
    ),
    "ROAD": _nl(0.24, "rotations and scales of pairs of outputs"),
    "SHADOW": _nl(
        None,
        "a small network beside the frozen one, and its injections",
        "its auxiliary loss is left out",
    ),
    "SHIRA": _lin("scattered entries of W", "the mask comes from random_seed or the run's seed"),
    "SUPERTUNING": _lin("the entries of W of largest size", "the same base weights choose them"),
    "TINYLORA": _lin("coefficients of a fixed random combination in W's singular basis", _SEEDED),
    "TRAINABLE_TOKENS": _lin("rows of the token embedding"),
    "UNILORA": _bil(0.77, "one short vector from which all factors are read", _SEEDED),
    "VBLORA": _nl(1.1, "a bank of vectors and the logits that mix the best k of them"),
    "VERA": _bil(0.67, "scales b and d of fixed random projections", _SEEDED),
    "WAVEFT": _lin("wavelet coefficients at fixed places", "places come from random_loc_seed"),
    "XLORA": _nl(None, "a gate that mixes frozen LoRA experts", "needs trained experts on disk"),
}


@dataclass(frozen=True)
class Variant:
    """A method that peft offers as an option of another one.

    Attributes:
        option: Option that selects it.
        matches: Whether the option's value does.
        label: How the variant is called, as option and value.
        averaging: Its description.
    """

    option: str
    matches: Callable[[Any], bool]
    label: str
    averaging: Averaging


def _is_on(option: str, averaging: Averaging) -> Variant:
    return Variant(option, lambda value: value not in (None, False, {}), option, averaging)


def _init(prefix: str, averaging: Averaging) -> Variant:
    option = "init_lora_weights"
    return Variant(option, lambda v: str(v).lower().startswith(prefix), prefix, averaging)


_FACTORS = "factors B and A of an update BA of rank r"
_LORA_VARIANTS = (
    _is_on(
        "use_dora", _nl(0.65, "factors B and A of a direction, and a magnitude for each output")
    ),
    _is_on(
        "kasa_config",
        _bil(
            0.58,
            "factors B, A and a diagonal",
            "the smallest singular directions are dropped, and the penalty term is left out",
        ),
    ),
    _is_on(
        "velora_config", _bil(None, _FACTORS, "activations are compressed by local projections")
    ),
    _is_on("monteclora_config", _bil(None, f"{_FACTORS}, with sampled weights")),
    _is_on("use_bdlora", _bil(None, f"{_FACTORS}, one of them block-diagonal")),
    _is_on("alora_invocation_tokens", _bil(None, f"{_FACTORS}, active after chosen tokens")),
    _is_on("arrow_config", _bil(None, "low-rank experts chosen by their directions")),
    _is_on("use_qalora", _bil(None, f"{_FACTORS} on grouped inputs of a quantised base")),
    _init("mica", _lin("factor A alone; B holds the smallest singular directions of W")),
    _init("pissa", _bil(0.64, "the largest singular part of W, as factors", _MUTATED)),
    _init("olora", _bil(0.59, "the first part of W's QR factors", _MUTATED)),
    _init("corda", _bil(None, "the part of W that matters for given inputs, as factors", _MUTATED)),
    _init("lora_ga", _bil(None, f"{_FACTORS} that starts along the first gradient", _MUTATED)),
    _init("loftq", _bil(None, f"{_FACTORS} that starts at the quantisation error", _MUTATED)),
    _init("eva", _bil(None, f"{_FACTORS}; A starts along the inputs' main directions")),
    _init("orthogonal", _bil(0.71, f"{_FACTORS} with orthogonal starts")),
    _is_on("use_rslora", _bil(0.69, _FACTORS, "scaled by alpha / sqrt(r)")),
)
VARIANTS: dict[str, tuple[Variant, ...]] = {
    "LORA": _LORA_VARIANTS,
    "OFT": (
        Variant(
            "use_cayley_neumann",
            lambda value: value is False,
            "use_cayley_neumann: false",
            dataclasses.replace(ENTRIES["OFT"], gap=0.59),
        ),
    ),
    "PREFIX_TUNING": (
        _is_on("prefix_projection", _nl(None, "a small network that makes keys and values")),
    ),
}
"""Options that change the kind; the first match counts, so the stronger claim comes first."""


@cache
def all_types() -> tuple[str, ...]:
    """Every ``peft_type`` of the installed peft, sorted; read from its source, not imported."""
    spec = importlib.util.find_spec("peft")
    if spec is None or not spec.submodule_search_locations:
        raise ModelError("the package 'peft' is not installed", hint="Try: pip install peft")
    source = Path(spec.submodule_search_locations[0]) / "utils" / "peft_types.py"
    tree = ast.parse(source.read_text(encoding="utf-8"))
    enum = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "PeftType")
    members = [n for n in enum.body if isinstance(n, ast.Assign)]
    return tuple(sorted(m.targets[0].id for m in members if isinstance(m.targets[0], ast.Name)))


def known_type(peft_type: Any) -> str:
    """The upper-case name of a peft type.

    Raises:
        ModelError: peft has no such type.
    """
    name = str(peft_type).upper()
    if name not in all_types():
        raise ModelError(
            f"unknown peft_type '{peft_type}'",
            key=("model", "peft", "peft_type"),
            hint=did_you_mean(name, all_types()),
            allowed=f"Types: {', '.join(all_types())}",
        )
    return name


def describe(peft: Mapping[str, Any]) -> Averaging:
    """What averaging means for a scenario's ``model.peft`` section, variants included.

    >>> describe({"peft_type": "LORA", "init_lora_weights": "mica"}).kind
    'LIN'
    """
    name = known_type(peft["peft_type"])
    for variant in VARIANTS.get(name, ()):
        if variant.option in peft and variant.matches(peft[variant.option]):
            return variant.averaging
    return _entry(name)


def _entry(name: str) -> Averaging:
    if name not in ENTRIES:  # a newer peft than the catalogue: make no promise
        return _nl(None, "not described in this catalogue, so taken as non-linear")
    return ENTRIES[name]


def averaging_warning(peft: Mapping[str, Any] | None) -> str | None:
    """One sentence for the run's log when averaging is biased; None when exact or no adapter."""
    averaging = describe(peft) if peft else None
    if not peft or averaging is None or averaging.exact:
        return None
    gap = f" (gap of {averaging.gap:.2f} measured at large drift)" if averaging.gap else ""
    return (
        f"{known_type(peft['peft_type'])}: the model with the mean of the clients' parameters is "
        f"not the mean of their models, because it is {WORDS[averaging.kind]}{gap}; the bias grows "
        f"with client drift."
    )


def config_class(peft_type: str) -> type[Any]:
    """peft's configuration class of a type; imports peft."""
    name = known_type(peft_type)
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    return PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[name]]


def option_fields(peft_type: str) -> dict[str, dataclasses.Field[Any]]:
    """The options that a scenario can give to a peft type, by name; imports peft."""
    fields = dataclasses.fields(config_class(peft_type))
    return {f.name: f for f in fields if f.init and f.name not in INTERNAL}


def card(peft_type: str) -> str:
    """A page about a peft type: what it trains, what averaging means, options and defaults."""
    name = known_type(peft_type)
    lines = [f"peft:{name} ({config_class(name).__name__})", "", *_paragraphs(_entry(name))]
    if name in VARIANTS:
        lines += ["", "Variants by option:"]
        lines += [_variant_line(variant) for variant in VARIANTS[name]]
    lines += ["", "Options (peft's names and defaults):"]
    lines += [_option_line(field) for field in option_fields(name).values()]
    return "\n".join(lines)


def _paragraphs(averaging: Averaging) -> list[str]:
    kind = f"{averaging.kind}, the layer is {WORDS[averaging.kind]}"
    if averaging.exact:
        verdict = f"exact ({kind}): the mean of parameters is the mean of the clients' updates."
    else:
        gap = "" if averaging.gap is None else f" Measured gap at large drift: {averaging.gap:.2f}."
        verdict = (
            f"biased ({kind}): the mean of parameters is another model than the mean of the "
            f"clients' models, the more so the further clients drift apart.{gap}"
        )
    note = [f"Note: {averaging.share}."] if averaging.share else []
    text = [f"Trains: {averaging.trains}.", f"Averaging is {verdict}", *note]
    return [line for part in text for line in textwrap.wrap(part, 96, subsequent_indent="  ")]


def _variant_line(variant: Variant) -> str:
    gap = "" if not variant.averaging.gap else f" {variant.averaging.gap:.2f}"
    return f"  {variant.label}: {variant.averaging.kind}{gap}, {variant.averaging.trains}"


def _option_line(field: dataclasses.Field[Any]) -> str:
    missing = dataclasses.MISSING
    default = field.default
    if default is missing and field.default_factory is not missing:
        default = field.default_factory()
    text = "(required)" if default is missing else repr(getattr(default, "value", default))
    meaning = textwrap.shorten(str(field.metadata.get("help", "")), 66, placeholder=" ...")
    return f"  {f'{field.name} = {text}':<30} {meaning}".rstrip()
