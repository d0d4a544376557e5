"""Build networks: from an inline configuration, a function, or pretrained weights.

Pretrained weights come from a local folder, an installed package (``package:module/folder``) or
the Hugging Face Hub. Weights are float32; new ones are drawn from torch's global generator.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim import registry
from fedsim.errors import Key, ModelError, PluginError, did_you_mean
from fedsim.models.places import fetch, quiet, readable
from fedsim.scenario import ModelSection

if TYPE_CHECKING:
    from torch import nn

EXTRA_OPTIONS = ("attn_implementation", "num_labels", "output_attentions")
"""Options that every transformers configuration takes beside its constructor's arguments."""
ROPE_OPTIONS = ("partial_rotary_factor", "rope_scaling", "rope_theta")
"""Older names for parts of ``rope_parameters``, which transformers converts."""
FIXED_OPTIONS = ("dtype", "model_type", "self")
"""Arguments of configurations that a scenario cannot choose: weights are float32."""


def build(section: ModelSection, auto_class: str, **defaults: Any) -> nn.Module:
    """Build the network that a scenario's ``model`` section describes.

    Args:
        section: Where the network comes from.
        auto_class: The transformers class that adds the right head, such as
            ``AutoModelForSequenceClassification``; not used for ``module:function``.
        **defaults: What the data says about the model (``num_labels``, ``vocab_size``, ...). A
            value is used where the user's configuration takes it and does not say it. Of a
            pretrained model, ``num_labels`` is always set and the others only where the model
            leaves them open.

    Raises:
        ModelError: The network cannot be found or built; ``key`` names the place.
    """
    if section.config is not None:
        if section.options:
            raise ModelError(
                "'options' goes with 'name'; write them into 'config'", key=("model", "options")
            )
        return _from_config(section.config, auto_class, defaults)
    name = str(section.name)
    if is_function(name):
        known = {**defaults, "how_to_get": section.how_to_get}
        return from_function(name, section.options, known)
    return _from_pretrained(section, name, auto_class, defaults)


# Inline configurations


def _from_config(given: Mapping[str, Any], auto_class: str, defaults: dict[str, Any]) -> nn.Module:
    import transformers

    key = ("model", "config")
    config_class = _config_class(given)
    builder = getattr(transformers, auto_class)
    if config_class not in builder._model_mapping:
        raise ModelError(
            f"transformers has no {auto_class} for the model type '{given['model_type']}'",
            key=(*key, "model_type"),
            hint="Choose a model type that fits the task",
        )
    options = {name: value for name, value in given.items() if name != "model_type"}
    check_config_options(config_class, options, key)
    known = _known_options(config_class)
    open_ = {n: v for n, v in defaults.items() if n in known and not _says(config_class, given, n)}
    what = f"the model '{given['model_type']}' cannot be built"
    with quiet(), readable(what, key, options):
        config = config_class(**options, **open_)
        model: nn.Module = builder.from_config(config)
    return model


def _config_class(given: Mapping[str, Any]) -> Any:
    from transformers import CONFIG_MAPPING

    if "model_type" not in given:
        raise ModelError(
            "the configuration does not say its 'model_type'",
            key=("model", "config"),
            hint="For example vit, bert, gpt2 or llama",
        )
    model_type = str(given["model_type"])
    known = list(CONFIG_MAPPING.keys())
    if model_type not in known:
        raise ModelError(
            f"transformers has no model type '{model_type}'",
            key=("model", "config", "model_type"),
            hint=did_you_mean(model_type, known),
            allowed=f"It has {len(known)}, for example bert, gpt2, llama, vit",
        )
    return CONFIG_MAPPING[model_type]


def check_config_options(config_class: Any, options: Mapping[str, Any], key: Key) -> None:
    """Refuse options that a transformers configuration would silently store and never use.

    Raises:
        ModelError: An option is unknown; ``key`` is extended by its name.
    """
    from transformers import PreTrainedConfig

    known = _known_options(config_class)
    own = sorted(known - _known_options(PreTrainedConfig))
    for name in options:
        if name not in known:
            raise ModelError(
                f"unknown option '{name}' of the model type '{config_class.model_type}'",
                key=(*key, name),
                hint=did_you_mean(name, known),
                allowed=f"Options: {', '.join(own)}",
            )


def _known_options(config_class: Any) -> set[str]:
    from transformers import PreTrainedConfig

    known = {*inspect.signature(config_class.__init__).parameters, *EXTRA_OPTIONS}
    known.update(inspect.signature(PreTrainedConfig.__init__).parameters)
    known.update(config_class.attribute_map)
    if "rope_parameters" in known:
        known.update(ROPE_OPTIONS)
    return known.difference(FIXED_OPTIONS)


def _says(config_class: Any, given: Mapping[str, Any], name: str) -> bool:
    """Whether the user's configuration sets an option, under this or another name for it."""
    names = {name, config_class.attribute_map.get(name, name)}
    names.update(a for a, b in config_class.attribute_map.items() if b == name)
    if name == "num_labels":
        names.add("id2label")
    return not names.isdisjoint(given)


# Functions


def is_function(name: str) -> bool:
    """Whether a model's name is ``module:function`` rather than a place with files."""
    return ":" in name and not name.startswith("package:") and not Path(name).exists()


def from_function(name: str, options: dict[str, Any], defaults: dict[str, Any]) -> nn.Module:
    """Call the user's ``module:function`` with its options, and those defaults that it takes.

    Raises:
        ModelError: It cannot be imported or called, or returns no torch module.
    """
    from torch import nn

    try:
        target = registry.import_object(name)
        if not callable(target):
            raise PluginError(f"'{name}' is not a function or class")
    except PluginError as error:
        raise _model_error(error, ("model", "name")) from error
    with readable(f"'{name}' cannot be called with options", ("model", "name"), {}):
        takes = registry.options(target)
    extra = {n: v for n, v in defaults.items() if n in takes and n not in options}
    try:
        checked = registry.check_options(target, options, f"model '{name}'", also_given=extra)
    except PluginError as error:
        raise _model_error(error, ("model", "options")) from error
    with readable(f"'{name}' raised", ("model", "name"), {}):
        model = target(**checked, **extra)
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"'{name}' returned {type(model).__name__}",
            key=("model", "name"),
            allowed="It must return a torch.nn.Module",
        )
    return model.float()


def _model_error(error: PluginError, key: Key) -> ModelError:
    return ModelError(error.what, key=(*key, *error.key), allowed=error.allowed, hint=error.hint)


# Pretrained weights


def _from_pretrained(
    section: ModelSection, name: str, auto_class: str, defaults: dict[str, Any]
) -> nn.Module:
    import torch
    import transformers

    def get(place: str, **where: Any) -> nn.Module:
        config = transformers.AutoConfig.from_pretrained(
            place, trust_remote_code=False, **where, **section.options
        )
        check_config_options(type(config), section.options, ("model", "options"))
        for option, value in _left_open(config, defaults, section.options).items():
            setattr(config, option, value)
        model: nn.Module
        model, info = getattr(transformers, auto_class).from_pretrained(
            place,
            config=config,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=False,
            **where,
        )
        _check_loaded(model, info)
        return model

    return fetch(name, section.how_to_get, ("model", "name"), get)


def _left_open(
    config: Any, defaults: Mapping[str, Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    """The defaults that a pretrained configuration needs: the head's size, and what is None."""
    return {
        name: value
        for name, value in defaults.items()
        if not _says(type(config), options, name)
        and (name == "num_labels" or getattr(config, name, ...) is None)
    }


def _check_loaded(model: nn.Module, info: Mapping[str, Any]) -> None:
    """Only the head may be new: a body with random weights is not the pretrained model."""
    body = f"{model.base_model_prefix}."
    absent = [*info["missing_keys"], *(found[0] for found in info["mismatched_keys"])]
    new = sorted(name for name in absent if str(name).startswith(body) and ".pooler." not in name)
    if new:
        raise ModelError(
            f"the folder lacks weights of the model's body, such as '{new[0]}' ({len(new)} in all)",
            key=("model", "name"),
            hint="Does the folder hold another kind of model, or do options change its size?",
        )
