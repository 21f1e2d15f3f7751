"""The kernels of op lean in three implementations: C++ (CPU), Triton (CUDA), plain torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from densekit.native_code import has_triton
from densekit.ops.lean.kernels import native, plain
from densekit.ops.lean.kernels.plain import DeferredGrad, NormGrads, NormReluGrad, Pool, Size


class Kernels(Protocol):
    """The ten kernels, and the weights that they take; plain.py says what each computes."""

    def prepare_weights(self, weights: Sequence[Tensor], x: Tensor) -> list[Tensor]: ...
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
        grads: NormGrads | None,
        grad: Tensor | None,
        d: Tensor | None = None,
        to: Tensor | None = None,
    ) -> None: ...
    def grad_sums(
        self, x: Tensor, norm: Tensor, da: Tensor, grads: NormGrads, pool: Pool | None = None
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
    def add_line(self, behind: DeferredGrad, out: Tensor) -> None: ...


KERNEL_NAMES = (
    "normalisation", "correction", "norm_relu", "norm_relu_pool", "moments", "grad_sums",
    "norm_relu_grad", "add_line", "norm_relu_conv", "norm_relu_conv_backward",
)  # fmt: skip


TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TRITON_FROM = (8, 0)  # compute capability: Ampere's, the first with bfloat16 products


def implementation(device: torch.device, dtype: torch.dtype) -> str:
    """Which kernels compute a tensor: native (C++), triton or plain.

    native needs a CPU, a C++ compiler, and float32 or bfloat16; triton a GPU of NVIDIA's, Ampere or
    later, and the package, which comes with torch on Linux. What they do not serve they leave to
    plain, too.
    """
    if device.type == "cuda" and torch.version.cuda and has_triton():
        recent = torch.cuda.get_device_capability(device) >= TRITON_FROM
        return "triton" if recent else "plain"
    if device.type == "cpu" and dtype in native.SUFFIX and native.reason() is None:
        return "native"
    return "plain"


def kernels_for(x: Tensor) -> Kernels:
    """The kernels for tensors like `x`."""
    name = implementation(x.device, x.dtype)
    if name == "triton":
        from densekit.ops.lean.kernels import gpu  # imports triton

        return gpu
    return native if name == "native" else plain
