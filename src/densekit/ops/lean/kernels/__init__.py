"""The kernels of op lean in three implementations: C++ (CPU), torch.compile (CUDA), plain torch."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Protocol

import torch
from torch import Tensor

from densekit.ops.lean.kernels import native, plain
from densekit.ops.lean.kernels.plain import DeferredGrad, NormReluGrad, Pool, Size


class Kernels(Protocol):
    """The ten kernels; plain.py says what each computes."""

    def normalisation(
        self,
        moments: Tensor,
        count: Tensor,
        gamma: Tensor,
        beta: Tensor,
        eps: float,
        norm: Tensor,
    ) -> None: ...
    def correction(self, norm: Tensor, sums: Tensor, count: Tensor, line: Tensor) -> None: ...
    def norm_relu(self, x: Tensor, norm: Tensor, out: Tensor) -> None: ...
    def norm_relu_pool(self, x: Tensor, norm: Tensor, out: Tensor, pool: Pool) -> None: ...
    def moments(self, z: Tensor, found: Tensor, copy: Tensor | None = None) -> None: ...
    def norm_relu_conv(
        self,
        x: Tensor,
        norm: Tensor,
        weight: Tensor,
        z: Tensor,
        size: Size,
        found: Tensor | None = None,
    ) -> None: ...
    def norm_relu_conv_backward(
        self,
        behind: DeferredGrad | NormReluGrad,
        x: Tensor,
        norm: Tensor,
        weight: Tensor,
        size: Size,
        sums: Tensor | None,
        grad: Tensor | None,
        d: Tensor | None = None,
        to: Tensor | None = None,
    ) -> None: ...
    def grad_sums(
        self, x: Tensor, norm: Tensor, da: Tensor, sums: Tensor, pool: Pool | None = None
    ) -> None: ...
    def norm_relu_grad(
        self,
        x: Tensor,
        norm: Tensor,
        da: Tensor,
        line: Tensor,
        out: Tensor,
        pool: Pool | None = None,
    ) -> None: ...
    def add_line(self, d: Tensor, x: Tensor, line: Tensor, out: Tensor) -> None: ...


KERNEL_NAMES = (
    "normalisation", "correction", "norm_relu", "norm_relu_pool", "moments", "grad_sums",
    "norm_relu_grad", "add_line", "norm_relu_conv", "norm_relu_conv_backward",
)  # fmt: skip


def implementation(device: torch.device, dtype: torch.dtype) -> str:
    """Which kernels compute a tensor: native (C++), compiled (torch.compile, on CUDA) or plain.

    native needs a CPU, a C++ compiler, and float32 or bfloat16.
    """
    if device.type == "cuda":
        return "compiled"
    if device.type == "cpu" and dtype in native.SUFFIX and native.reason() is None:
        return "native"
    return "plain"


def kernels_for(x: Tensor) -> Kernels:
    """The kernels for tensors like `x`."""
    name = implementation(x.device, x.dtype)
    return _compiled() if name == "compiled" else native if name == "native" else plain


@functools.cache
def _compiled() -> Kernels:
    compiled = {name: torch.compile(getattr(plain, name), dynamic=True) for name in KERNEL_NAMES}
    return SimpleNamespace(**compiled)
