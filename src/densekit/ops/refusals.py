"""Checks whether op lean can compute given modules, and says which one it cannot, and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from densekit.ops.relu import ReLU
from densekit.ops.sync_bn import SyncBatchNorm2d

Parts = Mapping[str, nn.Module]
"""Modules that one op computes together, by name."""

LEAN_DEVICES = ("cpu", "cuda")
LEAN_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
AS_BUILT: dict[type[nn.Module], dict[str, Any]] = {
    nn.Conv2d: {
        "stride": (1, 1), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros",
    },
    nn.BatchNorm2d: {"affine": True, "track_running_stats": True},
    SyncBatchNorm2d: {"affine": True, "track_running_stats": True},
    nn.ReLU: {},
    ReLU: {},
    nn.MaxPool2d: {
        "kernel_size": 3, "stride": 2, "padding": 1, "dilation": 1, "ceil_mode": False,
        "return_indices": False,
    },
    nn.AvgPool2d: {"kernel_size": 2, "stride": 2, "padding": 0, "ceil_mode": False},
}  # fmt: skip


def refusal(x: Tensor, parts: Parts, layer_type: type[nn.Module] | None = None) -> str | None:
    """Why lean cannot compute `parts` of `x`: a block's layers, or a norm and what follows it."""
    return next(_refusals(x, parts, layer_type), None)


def _refusals(x: Tensor, parts: Parts, layer_type: type[nn.Module] | None) -> Iterator[str]:
    if x.device.type not in LEAN_DEVICES:
        yield f"lean has no kernels for {x.device.type}"
    if x.dtype not in LEAN_DTYPES:
        yield f"lean has no kernels for {x.dtype}"
    if any(getattr(nn.modules.module, f"_global{hooks}") for hooks in HOOKS):
        yield "there is a hook on all modules, which lean would not call"
    layers = {name: part for name, part in parts.items() if type(part) is layer_type}
    for name, part in parts.items():
        if type(part) is layer_type:
            yield from _of_hooks(name, part)
            for inner, child in part.named_children():
                yield from _of_module(f"{name}.{inner}", child)
        else:
            yield from _of_module(name, part)
    yield from _of_shapes(x, layers)
    conv = parts.get("conv")  # a transition's: only of 1x1 does it commute with the pool
    if isinstance(conv, nn.Conv2d) and conv.kernel_size != (1, 1):
        yield f"conv has kernel_size={conv.kernel_size}"
    if len({layer.training and layer.drop_rate for layer in layers.values()}) > 1:
        yield "its layers have different dropout"
    norms = [m for part in parts.values() for m in part.modules() if isinstance(m, nn.BatchNorm2d)]
    if len({isinstance(norm, SyncBatchNorm2d) for norm in norms}) > 1:
        yield "only some of its norms are SyncBatchNorm2d"


def _of_shapes(x: Tensor, layers: Mapping[str, Any]) -> Iterator[str]:
    """Every layer has the first one's widths, and reads all channels before it."""
    channels, firsts = x.shape[1], list(layers.values())[:1]
    for name, layer in layers.items():
        modules, built = (dict(part.named_children()) for part in (layer, *firsts))
        if modules.keys() != built.keys():
            yield f"{name} has other modules than the block's first layer"
            return
        last = built["conv2" if "conv2" in built else "conv1"]
        expected = {
            "norm1.num_features": channels,
            "conv1.in_channels": channels,
            "conv1.out_channels": built["conv1"].out_channels,
        }
        if "conv2" in built:
            width = built["conv1"].out_channels
            expected |= {"norm2.num_features": width, "conv2.in_channels": width}
            expected |= {"conv2.out_channels": last.out_channels}
        for place, value in expected.items():
            inner, field = place.split(".")
            found = getattr(modules[inner], field, value)
            if found != value:
                yield f"{name}.{inner} has {field}={found}, where its block needs {value}"
        channels += last.out_channels


def _of_module(name: str, module: nn.Module) -> Iterator[str]:
    built = AS_BUILT.get(type(module))
    if built is None:
        yield f"{name} is a {type(module).__name__}"
        return
    if isinstance(module, nn.Conv2d):
        side = module.kernel_size[0]
        built = {**built, "kernel_size": (side, side), "padding": (side // 2, side // 2)}
    for field, value in built.items():
        if getattr(module, field) != value:
            yield f"{name} has {field}={getattr(module, field)}"
    if isinstance(module, nn.Conv2d) and module.bias is not None:
        yield f"{name} has a bias"
    yield from _of_hooks(name, module)
    yield from _of_parameters(name, module.parameters())


def _of_hooks(name: str, module: nn.Module) -> Iterator[str]:
    if any(getattr(module, hooks) for hooks in HOOKS):
        yield f"{name} has a hook, which lean would not call"
    if "forward" in vars(module):
        yield f"{name} has a forward of its own"


def _of_parameters(name: str, parameters: Iterable[Tensor]) -> Iterator[str]:
    for parameter in parameters:
        if type(parameter) not in (Tensor, nn.Parameter):
            yield f"{name} has parameters of type {type(parameter).__name__}"
