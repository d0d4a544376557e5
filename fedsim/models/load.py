"""Build networks: from an inline configuration, a function, or pretrained weights.

Pretrained weights come from a local folder, an installed package (``package:module/folder``) or
the Hugging Face Hub. A Hub model that is already on this machine is used as it is, without asking
the network. Weights are float32; new ones are drawn from torch's global generator.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fedsim import registry
from fedsim.errors import Key, ModelError, PluginError, did_you_mean
from fedsim.scenario import ModelSection

if TYPE_CHECKING:
    from torch import nn

T = TypeVar("T")
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
    with quiet():
        if section.config is not None:
            if section.options:
                raise ModelError(
                    "'options' goes with 'name'; write them into 'config'", key=("model", "options")
                )
            return _from_config(section.config, auto_class, defaults)
        name = str(section.name)
        if is_function(name):
            return _from_function(name, section.options, defaults)
        return _from_pretrained(section, name, auto_class, defaults)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' log and progress bars: what matters is said by fedsim."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


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
    with _readable(f"the model '{given['model_type']}' cannot be built", key, options):
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


def _from_function(name: str, options: dict[str, Any], defaults: dict[str, Any]) -> nn.Module:
    from torch import nn

    try:
        target = registry.import_object(name)
        if not callable(target):
            raise PluginError(f"'{name}' is not a function or class")
    except PluginError as error:
        raise _model_error(error, ("model", "name")) from error
    with _readable(f"'{name}' cannot be called with options", ("model", "name"), {}):
        takes = registry.options(target)
    extra = {n: v for n, v in defaults.items() if n in takes and n not in options}
    try:
        checked = registry.check_options(target, options, f"model '{name}'", also_given=extra)
    except PluginError as error:
        raise _model_error(error, ("model", "options")) from error
    with _readable(f"'{name}' raised", ("model", "name"), {}):
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


# Places


def fetch(name: str, how_to_get: str, key: Key, get: Callable[..., T]) -> T:
    """Read something with transformers from a folder, a package or the Hub.

    Args:
        name: Folder, ``package:module/folder``, or Hub id.
        how_to_get: What the scenario's author says to a reader who lacks it.
        key: Place of ``name`` in the scenario.
        get: Called with the folder or id, and with ``local_files_only`` for the latter.

    Raises:
        ModelError: There is no such place, or what lies there cannot be read.
    """
    folder = find_folder(name, how_to_get, key)
    with quiet(), _readable(f"'{name}' cannot be loaded", key, {}, how_to_get):
        if folder is not None:
            return get(str(folder), local_files_only=True)
        try:
            return get(name, local_files_only=True)
        except OSError as error:
            if not _hub_reachable():
                raise ModelError(
                    f"'{name}' is not a folder here, not in the Hugging Face cache, and the Hub "
                    "cannot be reached",
                    key=key,
                    hint=how_to_get or "Download it where there is a network, and name its folder",
                ) from error
        return get(name)


def find_folder(name: str, how_to_get: str, key: Key) -> Path | None:
    """The local folder that a model's name means, or None for a Hub id.

    Raises:
        ModelError: The name is a path or a package, and there is no such folder.
    """
    if name.startswith("package:"):
        return _package_folder(name, how_to_get, key)
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ModelError(f"'{name}' is a file, not a model's folder", key=key)
    if name.startswith((".", "/", "~", "\\")) or name.count("/") > 1:
        raise ModelError(f"there is no folder '{name}'", key=key, hint=how_to_get)
    return None


def _package_folder(name: str, how_to_get: str, key: Key) -> Path:
    module, _, inner = name.removeprefix("package:").partition("/")
    if not module or importlib.util.find_spec(module.split(".")[0]) is None:
        raise ModelError(
            f"the package '{module}' is not installed",
            key=key,
            hint=how_to_get or "Install it into the environment that runs fedsim",
        )
    try:
        folder = Path(str(files(module).joinpath(inner)))
    except ModuleNotFoundError as error:
        raise ModelError(f"cannot import '{module}': {error}", key=key, hint=how_to_get) from error
    if not folder.is_dir():
        raise ModelError(f"the package '{module}' has no folder '{inner}'", key=key)
    return folder


@cache
def _hub_reachable() -> bool:
    """One request without retries; transformers alone would try for half a minute."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # no route, no name, no certificate, a proxy that refuses: all the same here
        return False
    return True


@contextmanager
def _readable(what: str, key: Key, options: Mapping[str, Any], hint: str = "") -> Iterator[None]:
    """Turn whatever a library raises into a ModelError that names the option at fault, if any."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        blamed = [n for n, v in options.items() if f"'{n}'" in text or text == repr(v)]
        raise ModelError(
            f"{what}: {type(error).__name__}: {text[:300]}", key=(*key, *blamed[:1]), hint=hint
        ) from error
