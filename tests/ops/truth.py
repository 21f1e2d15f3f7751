"""The rule of the tests of lean and of norm_relu: float64 of the reference is the truth.

A computation passes when its error is at most TIMES the error of the reference in the same
precision; errors below FLOOR, relative to the truth's norm, count as FLOOR. An error is taken over
all tensors of a kind together (all gradients of convolutions, all running means, ...). One input
proves little, because a rounding that opens or closes a relu is far larger than all others: of
several inputs the median ratio counts (of two, in the quick tests, the smaller). In float64 itself
the relative error must be at most EXACT.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from math import sqrt
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

TIMES, FLOOR, EXACT = 3.0, 1.2e-7, 1e-12
STEPS, LR = 2, 0.05


class Precision(NamedTuple):
    """What is computed in, and how many inputs are drawn to compare."""

    name: str
    dtype: torch.dtype
    draws: int = 1

    def __str__(self) -> str:
        return self.name if self.draws <= 2 else f"{self.name}, {self.draws} draws"

    @property
    def parameters(self) -> torch.dtype:
        """bf16 is autocast over parameters in float32."""
        return torch.promote_types(self.dtype, torch.float32)

    def autocast(self, device: str) -> torch.autocast:
        return torch.autocast(device, torch.bfloat16, enabled=self.dtype is torch.bfloat16)


FP64 = Precision("fp64", torch.float64)
FP32, BF16 = Precision("fp32", torch.float32, 2), Precision("bf16", torch.bfloat16, 2)
SLOW = [pytest.param(p._replace(draws=5), marks=pytest.mark.slow) for p in (FP32, BF16)]

# What the tests are parametrised with
EVERY = pytest.mark.parametrize("precision", [FP64, FP32, BF16, *SLOW], ids=str)
ONE_DRAW = pytest.mark.parametrize("precision", [FP64, FP32, BF16], ids=str)
FULL = pytest.mark.parametrize("precision", [FP64, FP32, *SLOW[:1]], ids=str)
"""Without bf16, which cannot tell a mean of 1000 deviations from its values."""
ON = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])

Function = Callable[[nn.Module, Tensor], Tensor]
Kinds = dict[str, dict[str, Tensor]]
"""Tensors by kind and name: {"weight": {"denselayer1.norm1.weight": its gradient, ...}, ...}."""


def draw_norms(module: nn.Module) -> None:
    """Draws its norms' parameters and buffers: no two alike, some gammas and betas below 0."""
    generator = torch.Generator().manual_seed(1)
    for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
        for x in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            x.data = torch.randn(x.shape, generator=generator)
        norm.running_var.abs_().add_(0.5)


def images(
    shape: tuple[int, ...], draw: int = 0, mean: float = 0.0, std: float = 1.0
) -> list[Tensor]:
    """float64 [N, C, H, W] for each step; bfloat16 (with a mean: float32) has the same values."""
    generator = torch.Generator().manual_seed(draw)
    exact = torch.float32 if mean else torch.bfloat16
    drawn = (torch.randn(shape, generator=generator) for _ in range(STEPS))
    return [(x * std + mean).to(exact).double() for x in drawn]


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def steps(
    function: Function,
    module: nn.Module,
    xs: list[Tensor],
    precision: Precision,
    device: str,
    layout: Callable[[Tensor], Tensor] = channels_last,
) -> Kinds:
    """The output and the gradients of the last step of all, and the buffers after it.

    A step is forward, backward and SGD, on a copy of `module`. `layout` lays the input out.
    """
    module = copy.deepcopy(module).to(device, precision.parameters)
    parameters = dict(module.named_parameters())
    for step, images in enumerate(xs):
        x = layout(images.to(device, precision.dtype)).detach().requires_grad_()
        torch.manual_seed(step)  # dropout's
        with precision.autocast(device):
            out = function(module, x)
        generator = torch.Generator().manual_seed(step)
        towards = torch.randn(out.shape, generator=generator) / sqrt(out.numel() / out.shape[1])
        module.zero_grad()
        out.backward(towards.to(out.device, out.dtype))
        with torch.no_grad():
            for parameter in parameters.values():
                parameter -= LR * parameter.grad
    kinds: Kinds = {"output": {"": out.detach()}, "input": {"": x.grad}}
    for name, parameter in parameters.items():
        last = name.rpartition(".")[2] if parameter.ndim == 1 else "convolution"
        kinds.setdefault(f"gradient of {last}", {})[name] = parameter.grad
    for name, buffer in module.named_buffers():
        kinds.setdefault(name.rpartition(".")[2], {})[name] = buffer
    return kinds


def distances(kinds: Kinds, truth: Kinds) -> dict[str, float]:
    """Of each kind, relative to the norm of the truth."""
    assert kinds.keys() == truth.keys()
    return {kind: distance(kinds[kind], truth[kind]) for kind in truth}


def distance(found: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    assert found.keys() == truth.keys()
    assert all(found[name].shape == truth[name].shape for name in truth)
    theirs = torch.cat([truth[name].cpu().double().flatten() for name in truth])
    ours = torch.cat([found[name].cpu().double().flatten() for name in truth])
    return float((ours - theirs).norm() / theirs.norm().clamp_min(1e-300))


def ratios(own: Kinds, reference: Kinds, truth: Kinds) -> dict[str, float]:
    """How many times as far from the truth as the reference each kind is."""
    theirs = distances(reference, truth)
    return {kind: error / max(theirs[kind], FLOOR) for kind, error in distances(own, truth).items()}


def check(
    own: Function,
    reference: Function,
    module: nn.Module,
    draws: Callable[[int], list[Tensor]],
    precision: Precision,
    device: str,
    layout: Callable[[Tensor], Tensor] = channels_last,
) -> None:
    """That `own` computes `module` as near to the truth as the reference does."""
    found = []
    for xs in map(draws, range(precision.draws)):
        truth = steps(reference, module, xs, FP64, device, layout)
        ours = steps(own, module, xs, precision, device, layout)
        if precision is FP64:
            assert max(distances(ours, truth).values()) <= EXACT, distances(ours, truth)
        else:
            theirs = steps(reference, module, xs, precision, device, layout)
            found.append(ratios(ours, theirs, truth))
    kinds = found[0] if found else {}
    worst = {kind: statistics.median_low(draw[kind] for draw in found) for kind in kinds}
    assert all(ratio <= TIMES for ratio in worst.values()), worst
