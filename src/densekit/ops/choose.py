"""Which op computes a part of the network. Plain Python at call time: torch.compile traces it.

    reference   the modules themselves: bit for bit torchvision's
    recompute   the modules, normalised copies made again in backward: less memory, slower
    lean        one buffer, shared statistics: the least memory, and the fastest where it is taken;
                in evaluation all of the network in one call (models/one_call.py), where it can be
    auto        lean on a CPU that has its C++ kernels; else reference

auto's table follows benchmarks/results.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import torch
from torch import Tensor, nn

from densekit.config import UserError, nearest
from densekit.ops import recompute, reference
from densekit.ops.lean import forward as lean
from densekit.ops.lean.kernels import TRITON_DTYPES, implementation, inference, native
from densekit.ops.refusals import Parts, refusal
from densekit.ops.sync_bn import SyncBatchNorm2d
from densekit.ops.transforms import NOT_UNDER, transform_of
from densekit.progress import say

DENSE_BLOCKS: dict[str, Callable[[Tensor, list[nn.Module]], Tensor]] = {
    "reference": reference.dense_block,
    "recompute": recompute.dense_block,
    "lean": lean.dense_block,
}
NOT_MEASURED = "lean has not been measured on this GPU"
OP_NAMES = ("auto", *DENSE_BLOCKS)
_SAID: set[str | None] = set()  # in this process: why auto took no lean


def check_name(name: str) -> None:
    """Raises UserError for an unknown op."""
    if name not in OP_NAMES:
        raise UserError(f'model.op: unknown op "{name}"{nearest(name, OP_NAMES)}')


def choose(name: str, x: Tensor, parts: Parts, layer_type: type[nn.Module] | None = None) -> str:
    """The op that computes `parts` of `x`: the layers of a block, or a norm with what follows it.

    Raises UserError where an op is asked for by name and cannot.
    """
    if name == "reference":
        return name
    transform = transform_of(x)
    if transform in NOT_UNDER["lean" if name == "auto" else name]:
        if name == "auto":
            return "reference"
        return _refuse(f"model.op={name} cannot be taken under {transform}; use model.op=reference")
    if name == "recompute":
        return name
    modules = [module for part in parts.values() for module in part.modules()]
    if x.numel() == 0 and not any(isinstance(m, SyncBatchNorm2d) for m in modules):
        return "reference"  # nothing to compute
    if name == "auto" and not _trains(x, modules):
        return "reference"
    reason = why_not_lean(x.device, x.dtype) if name == "auto" else None
    reason = reason or refusal(x, parts, layer_type)
    if name == "auto" and not torch.compiler.is_compiling():
        _say_once(reason)
    if reason is None:
        return "lean"
    if name == "auto":
        return "reference"
    return _refuse(f"model.op=lean cannot compute this network: {reason}; use model.op=reference")


@torch.compiler.disable
def _refuse(sentence: str) -> NoReturn:
    """Not traced: dynamo of torch 2.9 fails itself at an error of one's own class."""
    raise UserError(sentence)


def op_of_run(name: str, device: torch.device, dtype: torch.dtype) -> tuple[str, list[str]]:
    """The op that a run takes, fixed before its first step, and why auto takes no faster one."""
    if name != "auto":
        return name, []
    reason = why_not_lean(device, dtype)  # compiles kernels, and says so
    if reason is None:
        return "lean", []
    return "reference", [f"model.op=auto takes the reference: {reason}"]


def in_one_call(name: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the op computes a network in evaluation in one call, of which maps are in `dtype`."""
    if name == "lean":
        return why_no_inference(device, dtype) is None
    return name == "auto" and why_not_inference(device, dtype) is None


def why_not_inference(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why auto takes the reference in evaluation; None where the network is one call.

    Any batch, by engines-1.json and engines-16.json in benchmarks/results. With AMX torch's own
    bf16 products may be faster than these kernels can be; it has not been measured.
    """
    if device.type == "cuda":
        return NOT_MEASURED
    if device.type == "cpu" and dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported():
        return "this CPU has AMX, which the C++ of inference does not use"
    return why_no_inference(device, dtype)


def why_no_inference(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a network cannot be one call in evaluation; None where it can."""
    if device.type == "cpu" and dtype in native.SUFFIX:
        return inference.reason()
    if implementation(device, dtype) == "triton" and dtype in TRITON_DTYPES:
        return None
    return f"inference in one call is not for {dtype} on {device}"


def why_not_lean(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why auto takes the reference in training; None where it takes lean."""
    if device.type == "cuda":
        return NOT_MEASURED
    if device.type != "cpu":
        return f"lean has no kernels for {device.type}"
    if dtype not in native.SUFFIX:
        return f"lean's C++ kernels are for float32 and bfloat16, not {dtype}"
    return native_reason()


@torch.compiler.assume_constant_result
def native_reason() -> str | None:
    return native.reason()


def _say_once(why_not: str | None) -> None:
    """What auto took, in an eager loop of one's own; a run says it itself."""
    if why_not in _SAID:
        return
    _SAID.add(why_not)
    if why_not is None:
        say('model.op=auto takes lean in training; model.set_op("reference") takes the modules')
    else:
        say(f"model.op=auto takes the reference in training: {why_not}")


def _trains(x: Tensor, modules: list[nn.Module]) -> bool:
    if not (torch.is_grad_enabled() and any(module.training for module in modules)):
        return False
    parameters = (p for module in modules for p in module.parameters(recurse=False))
    return x.requires_grad or any(p.requires_grad for p in parameters)
