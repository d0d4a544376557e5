"""How a model computes: in bfloat16, with channels last, or compiled.

Each changes the last bits of results.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedsim.errors import ModelError

BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""Of x86 and of ARM, as ``torch.cpu.get_capabilities`` names them."""

RECOMPILE_LIMIT = 256
"""Shapes of batches that a model is compiled for; more are an error."""


def use_bfloat16(model: nn.Module, network: nn.Module) -> None:
    """Keep what is frozen in bfloat16 and compute in it; what is trained stays float32.

    Results keep about three digits. It pays where the hardware multiplies bfloat16 (AMX or AVX-512
    BF16, GPUs); elsewhere it is slower. Layers with running statistics keep their type, and outputs
    are float32.

    Args:
        model: What is trained and tested; its ``forward`` is changed.
        network: The same, or the network inside that peft calls itself to generate text.
    """
    for module in network.modules():
        if getattr(module, "running_mean", None) is None:
            for parameter in module.parameters(recurse=False):
                if not parameter.requires_grad and parameter.is_floating_point():
                    parameter.data = parameter.data.bfloat16()
    for module in {model, network}:
        original = cast(MethodType, module.forward).__func__
        module.forward = MethodType(_in_bfloat16(original), module)


def bfloat16_warning() -> str | None:
    """One sentence where this processor does not multiply bfloat16, None where it does."""
    able = torch.cpu.get_capabilities()
    if any(able.get(name) for name in BFLOAT16_INSTRUCTIONS):
        return None
    return (
        "model.dtype: bfloat16 will be slower than float32 (3.5 times where it was measured): "
        "this processor has no instructions for it, such as AVX-512 BF16 or AMX"
    )


def _in_bfloat16(forward: Callable[..., Any]) -> Callable[..., Any]:
    from accelerate.utils import convert_to_fp32  # type: ignore[import-untyped]

    @functools.wraps(forward)
    def in_bfloat16(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        device = next(self.parameters()).device.type
        with torch.autocast(device, torch.bfloat16):
            output = forward(self, *args, **kwargs)
        return convert_to_fp32(output)

    return in_bfloat16


def use_channels_last(model: nn.Module) -> None:
    """Hand images to the model with their channels last in memory, a layout that layers pass on.

    Weights and gradients keep theirs, so nothing that travels changes: each convolution rearranges
    its own weights.
    """
    model.register_forward_pre_hook(_with_channels_last, with_kwargs=True)


def _with_channels_last(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return tuple(map(_rearranged, args)), {k: _rearranged(x) for k, x in kwargs.items()}


def _rearranged(x: Any) -> Any:
    if not isinstance(x, Tensor) or x.dim() != 4 or not x.is_floating_point():
        return x
    # Not contiguous(memory_format=...): torch.func knows none, and one channel would stay as it is.
    return x.movedim(1, -1).clone(memory_format=torch.contiguous_format).movedim(-1, 1)


def compile_in_place(model: nn.Module) -> None:
    """Let torch compile a model, anew for every shape of batch.

    Code that serves several shapes would depend on which of them came first, hence on the worker;
    code for one shape does not. It suits rows of equal length: each shape takes seconds or minutes.

    Raises:
        ModelError: There is no C++ compiler.
    """
    import torch._dynamo.config as dynamo
    import torch._inductor.config as inductor
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ModelError(
            "torch needs a C++ compiler to compile the model, and finds none",
            key=("model", "compile"),
            hint="Install g++ (or name one in the variable CXX), or leave the option out",
        ) from error
    dynamo.recompile_limit = RECOMPILE_LIMIT
    dynamo.fail_on_recompile_limit_hit = True
    inductor.compile_threads = 1  # workers are many already
    with warnings.catch_warnings():  # torch imports what torch has deprecated
        warnings.filterwarnings("ignore", "`torch.jit.script_method` is deprecated")
        model.compile(dynamic=False)
