"""Choose what is trained: a PEFT adapter, parameters by name pattern, or everything.

A scenario's ``model.peft`` holds ``peft_type`` and that configuration class's own options, which
are passed to peft unchanged. Added here is only what the user left out and a federated run needs:
a classification head is trained, hence exchanged; prompt methods learn which kind of model they
serve; multi-task methods see every client as task 0. Whatever peft refuses ends in a ``ModelError``
that names the option.
"""

from __future__ import annotations

import copy
import fnmatch
import re
import types
import typing
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from fedsim.errors import ModelError, did_you_mean
from fedsim.models import catalogue
from fedsim.scenario import ModelSection

HEAD_NAMES = (
    *("classifier", "pre_classifier", "score", "head", "qa_outputs"),
    *("classification_head", "logits_proj", "sequence_summary"),
)
"""Attributes under which transformers models and plain modules keep a task's head."""
TASK_TYPES = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForImageClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
}
"""peft's task type by the ending of a transformers class name."""
TOKEN_MODELS_ONLY = ("SHADOW", "XLORA", "TRAINABLE_TOKENS")
"""Types beside the prompt methods that work on token embeddings."""
NEEDS_DATA = ("eva", "lora_ga", "corda")
"""Initialisations that look at data; peft starts some of them at random when nobody did."""
HARMLESS = (
    r"`is_gradient_checkpointing` is deprecated",
    r"fan_in_fan_out is set to .* Setting fan_in_fan_out to",
    r"Failed to load the CUDA extension",
    r"Setting boft_n_butterfly_factor to 1",
    r"Unsupported layer type '<class '[\w.]+Norm\w*'>'",
    r"Specified to not save",
    r"save_precomputed_indices=False",
)
"""Warnings of peft about speed, its own calls, or its file format, which is not used here."""


def wrap(model: nn.Module, section: ModelSection) -> nn.Module:
    """Select what is trained; the model is changed in place and may come back inside another.

    Draws from torch's global generator, which the caller seeds. Without ``peft`` and ``trainable``
    the model's own ``requires_grad`` flags are left alone, so all parameters are trained unless the
    model froze some.

    Raises:
        ModelError: An option is unknown, ill-typed or missing, or does not fit the model.
    """
    if section.peft is not None:
        return _with_adapter(model, section.peft)
    if section.trainable:
        _train_only(model, section.trainable)
    return model


def running_statistics(model: nn.Module) -> dict[str, Tensor]:
    """Running means and variances that belong to trained normalisation layers, by buffer name.

    They are exchanged like parameters, as FedAvg does with BatchNorm. Layers without parameters of
    their own count as trained when everything is.
    """
    everything = all(p.requires_grad for p in model.parameters())
    found = {}
    for prefix, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if any(p.requires_grad for p in own) or (everything and not own):
            for name in ("running_mean", "running_var"):
                buffer = getattr(module, name, None)
                if isinstance(buffer, Tensor):
                    found[f"{prefix}.{name}".lstrip(".")] = buffer
    return found


def head_names(model: nn.Module) -> list[str]:
    """Direct children of the model that are a task's head.

    A head is known by its attribute name (``HEAD_NAMES``). The output layer of a language model is
    none: it is pretrained, often tied to the embeddings, and stays frozen under an adapter.
    """
    get_output = getattr(model, "get_output_embeddings", None)
    output = get_output() if callable(get_output) else None
    children = dict(model.named_children())
    return [n for n in HEAD_NAMES if n in children and children[n] is not output]


def _train_only(model: nn.Module, patterns: Sequence[str]) -> None:
    names = [name for name, _ in model.named_parameters()]
    for index, pattern in enumerate(patterns):
        if not fnmatch.filter(names, pattern):
            raise ModelError(
                f"the pattern '{pattern}' matches no parameter of the model",
                key=("model", "trainable", index),
                hint=did_you_mean(pattern, names),
                allowed=f"Parameters: {_few(names)}",
            )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(fnmatch.fnmatchcase(name, p) for p in patterns))


def _with_adapter(model: nn.Module, peft: Mapping[str, Any]) -> nn.Module:
    options = copy.deepcopy(dict(peft))  # peft appends to lists that it is given
    kind = catalogue.known_type(options.pop("peft_type"))
    _check_options(kind, options)
    _check_values(kind, options)
    _check_model(model, kind, options)
    if kind == "XLORA":
        typing.cast(Any, model).config.use_cache = False  # peft insists, and training has no cache
    heads = [h for h in head_names(model) if not _is_target(options.get("target_modules"), h)]
    wrapped = _apply(model, kind, _completed(model, kind, options, heads))
    if "modules_to_save" not in catalogue.option_fields(kind):
        for head in heads:
            model.get_submodule(head).requires_grad_()
    if kind == "FROD":  # torch warns at the first use unless checks were switched on or off
        torch.sparse.check_sparse_tensor_invariants.disable()  # type: ignore[no-untyped-call]
    if kind in ("POLY", "MULTITASK_PROMPT_TUNING"):
        _use_task_zero(wrapped)
    if not any(p.requires_grad for p in wrapped.parameters()):
        raise _fault(f"{kind} leaves nothing to train")
    return wrapped


def _check_options(kind: str, options: Mapping[str, Any]) -> None:
    known = catalogue.option_fields(kind)
    hints = typing.get_type_hints(catalogue.config_class(kind))
    for name, value in options.items():
        if name not in known:
            raise _fault(
                f"unknown option '{name}' of {kind}",
                name,
                hint=did_you_mean(name, known),
                allowed=f"Options: {', '.join(known)}",
            )
        if value is not None and _is_scalar(hints[name]):
            _check_scalar(kind, name, hints[name], value)


def _is_scalar(hint: Any) -> bool:
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    members = typing.get_args(hint) if is_union else (hint,)
    return set(members) <= {int, float, bool, str, types.NoneType}


def _check_scalar(kind: str, name: str, hint: Any, value: Any) -> None:
    try:
        TypeAdapter(hint).validate_python(value, strict=True)
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        text = f"option '{name}' of {kind}: {message[:1].lower()}{message[1:]}, not {value!r}"
        raise _fault(text, name) from None


def _check_values(kind: str, options: Mapping[str, Any]) -> None:
    """Refuse what peft would accept and break later, or start otherwise than its name says."""
    required = {"XLORA": ("adapters", "hidden_size"), "CPT": ("cpt_token_ids",)}
    prompt_needs = ("num_virtual_tokens",) if _is_prompt(kind) else ()
    for name in required.get(kind, prompt_needs):
        if options.get(name) is None:
            raise _fault(f"{kind} needs the option '{name}'", name)
    for name in ("n_tasks", "num_tasks"):
        if options.get(name, 1) != 1:
            raise _fault(f"all clients are task 0, so {kind} needs {name}: 1", name)
    init = str(options.get("init_lora_weights", "")).lower()
    if init in NEEDS_DATA:
        raise _fault(
            f"the start '{init}' must look at data before training, which is not done here",
            "init_lora_weights",
            allowed="Starts: true, gaussian, orthogonal, olora, pissa, pissa_niter_16, mica",
        )


def _check_model(model: nn.Module, kind: str, options: Mapping[str, Any]) -> None:
    """Refuse what calls the model with token ids where it takes something else."""
    name = type(model).__name__
    if getattr(model, "main_input_name", None) == "input_ids":
        return
    if _is_prompt(kind) or kind in TOKEN_MODELS_ONLY:
        raise _fault(
            f"{kind} works on token embeddings, and {name} takes no token ids", "peft_type"
        )
    if options.get("task_type") is not None:
        raise _fault(
            f"peft's task types call models with token ids, and {name} takes none",
            "task_type",
            hint="Leave it out: the head is trained anyway",
        )


def _is_prompt(kind: str) -> bool:
    from peft import PromptLearningConfig

    return issubclass(catalogue.config_class(kind), PromptLearningConfig)


def _completed(
    model: nn.Module, kind: str, options: dict[str, Any], heads: list[str]
) -> dict[str, Any]:
    """Options plus those that the user left out and that follow from the model."""
    added: dict[str, Any] = {}
    known = catalogue.option_fields(kind)
    if heads and "modules_to_save" in known:
        added["modules_to_save"] = heads
    if _is_prompt(kind) and options.get("task_type") is None:
        added["task_type"] = _task_type(model)
    if "progressbar" in known:
        added["progressbar"] = False
    return {**added, **options}


def _task_type(model: nn.Module) -> str:
    name = type(model).__name__
    for ending, task_type in TASK_TYPES.items():
        if name.endswith(ending):
            return task_type
    allowed = f"One of: {', '.join(dict.fromkeys(TASK_TYPES.values()))}, FEATURE_EXTRACTION"
    raise _fault(f"cannot tell the task type of {name}", "task_type", allowed=allowed)


def _is_target(targets: Any, head: str) -> bool:
    """Whether the user puts the adapter on the head itself, or on a layer inside it."""
    if isinstance(targets, str):
        try:
            return re.fullmatch(targets, head) is not None
        except re.error as error:
            text = f"'{targets}' is not a regular expression: {error}"
            raise _fault(text, "target_modules", hint="Give a list of layer names") from None
    return any(t == head or str(t).startswith(f"{head}.") for t in targets or ())


def _apply(model: nn.Module, kind: str, options: Mapping[str, Any]) -> nn.Module:
    from peft import get_peft_model

    with _without_harmless_warnings():
        try:
            config = catalogue.config_class(kind)(**options)
            wrapped: nn.Module = get_peft_model(model, config)
        except Exception as error:
            raise _explained(error, model, kind, options) from error
    return wrapped


@contextmanager
def _without_harmless_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        for message in HARMLESS:
            warnings.filterwarnings("ignore", message=message)
        yield


def _explained(
    error: Exception, model: nn.Module, kind: str, options: Mapping[str, Any]
) -> ModelError:
    """peft's own words, with the option they are about and what the model offers."""
    from peft.utils.error import NoMatchingPeftModuleError

    words = str(error) or type(error).__name__
    option = _option_named_in(words, kind) or "peft_type"
    if isinstance(error, NoMatchingPeftModuleError) and options.get("target_modules"):
        option = "target_modules"
        words = f"{options[option]!r} match no layer of {type(model).__name__}"
    hint = _layers_hint(model, kind) if option.endswith("_modules") else ""
    return _fault(f"peft cannot build {kind}: {words}", option, hint=hint)


def _option_named_in(words: str, kind: str) -> str | None:
    """The first option of a type that a message mentions, as ``task_type`` or ``task type``."""
    for name in catalogue.option_fields(kind):
        if re.search(rf"\b{name.replace('_', '[_ ]')}\b", words):
            return name
    return None


def _layers_hint(model: nn.Module, kind: str) -> str:
    if kind == "LN_TUNING":
        return f"Norm layers of this model: {_few(_layer_names(model, ('Norm',)))}"
    return f"Linear layers of this model: {_few(_layer_names(model, ('Linear', 'Conv')))}"


def _layer_names(model: nn.Module, kinds: Sequence[str]) -> list[str]:
    """Last parts of layer names, as peft matches them; whole names where that is a number."""
    found = []
    for name, module in model.named_modules():
        if name and any(kind in type(module).__name__ for kind in kinds):
            last = name.rsplit(".", 1)[-1]
            found.append(name if last.isdigit() else last)
    return list(dict.fromkeys(found))


def _few(names: Sequence[str], limit: int = 12) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more if names else "none"


def _use_task_zero(model: nn.Module) -> None:
    """Hand task 0 to the layers of a multi-task method, for every row of the batch."""
    from peft.tuners.multitask_prompt_tuning import MultitaskPromptEmbedding
    from peft.tuners.poly import Linear as PolyLinear

    def routed(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "task_ids": args[0].new_zeros(len(args[0]), dtype=torch.long)}

    def prompted(_: nn.Module, args: Any) -> Any:
        return args[0], args[0].new_zeros(len(args[0]), dtype=torch.long)

    for module in model.modules():
        if isinstance(module, PolyLinear):
            module.register_forward_pre_hook(routed, with_kwargs=True)
        elif isinstance(module, MultitaskPromptEmbedding):
            module.register_forward_pre_hook(prompted)


def _fault(what: str, option: str = "", *, allowed: str = "", hint: str = "") -> ModelError:
    key = ("model", "peft", option) if option else ("model", "peft")
    return ModelError(what, key=key, allowed=allowed, hint=hint)
