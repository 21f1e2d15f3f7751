"""The kernels of plain.py in Triton, for NVIDIA GPUs; unproved on a GPU.

    1x1        conv1.py: norm and relu in the product's prologue, moments in its epilogue; backward
               is one pass over x and d for gradient, mask, sums and the weight's gradient
    3x3        cuDNN's, between elementwise passes, where it has fast kernels: in float32, and for
               widths that are multiples of 8. A prototype of conv3.py took 9.6 ms of a step of
               DenseNet-121 (bf16, batch 128, one H200), cuDNN 3.3 and the passes about 1. Other
               widths, such as DenseNet-BC-100-12's, are conv3.py's
    the rest   rows.py, sums.py

float32 is float32: no product is rounded to tf32, unless torch.backends.cudnn.allow_tf32 says so of
cuDNN's. Channel counts are arguments, so all layers share a few compiled kernels. What no kernel is
made for (float64, no rows, K above conv1.LARGEST_K) goes to plain.py. No call waits for the GPU, so
a step can be captured in a CUDA graph. Results are the same in each run on one kind of GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from densekit.ops.lean.kernels import TRITON_DTYPES, plain
from densekit.ops.lean.kernels.gpu import rows, sums
from densekit.ops.lean.kernels.gpu.conv1 import LARGEST_K, conv1_backward, conv1_forward
from densekit.ops.lean.kernels.gpu.conv3 import conv3_backward, conv3_forward
from densekit.ops.lean.kernels.plain import DeferredGrad, NormGrads, NormReluGrad, Pool, Size
from densekit.ops.lean.layout import as_maps, as_rows, contiguous_weight


def prepare_weights(weights: Sequence[Tensor], x: Tensor) -> list[Tensor]:
    """All of them in one launch."""
    given = [contiguous_weight(weight) for weight in weights]
    if all(weight.dtype == x.dtype for weight in given):
        return given
    cast = [torch.empty_like(weight, dtype=x.dtype) for weight in given]
    torch._foreach_copy_(cast, given)
    return cast


def normalisation(
    moments: Tensor, count: Tensor, gamma: Tensor, beta: Tensor, eps: float, norm: Tensor
) -> None:
    of = sums if norm.dtype == torch.float32 else plain
    of.normalisation(moments, count, gamma, beta, eps, norm)


def correction(norm: Tensor, found: Tensor, count: Tensor, line: Tensor) -> None:
    of = sums if norm.dtype == torch.float32 else plain
    of.correction(norm, found, count, line)


def norm_relu(x: Tensor, norm: Tensor, out: Tensor) -> None:
    (rows if _served(x) else plain).norm_relu(x, norm, out)


def norm_relu_pool(x: Tensor, norm: Tensor, out: Tensor, pool: Pool) -> None:
    (rows if _served(out) else plain).norm_relu_pool(x, norm, out, pool)


def moments(z: Tensor, found: Tensor, copy: Tensor | None = None) -> None:
    (sums if _served(z) else plain).moments(z, found, copy)


def grad_sums(
    x: Tensor, norm: Tensor, da: Tensor, grads: NormGrads, pool: Pool | None = None
) -> None:
    (sums if _served(x) else plain).grad_sums(x, norm, da, grads, pool)


def norm_relu_grad(
    x: Tensor, norm: Tensor, da: Tensor, line: Tensor, out: Tensor, pool: Pool | None = None
) -> None:
    (rows if _served(x) else plain).norm_relu_grad(x, norm, da, line, out, pool)


def add_line(behind: DeferredGrad, out: Tensor) -> None:
    (rows if _served(behind.x) else plain).add_line(behind, out)


def norm_relu_conv(
    x: Tensor, norm: Tensor, weight: Tensor, z: Tensor, size: Size, found: Tensor | None = None
) -> None:
    if not _served(x):
        plain.norm_relu_conv(x, norm, weight, z, size, found)
        return
    (weight,) = prepare_weights([weight], x)
    if weight.shape[-1] == 1:
        conv1_forward(x, norm, weight, z, found)
    elif not _fast_in_cudnn(x, weight):
        conv3_forward(x, norm, weight, z, size, found)
    else:
        a = x.new_empty(x.shape)
        rows.norm_relu(x, norm, a)
        _cudnn_forward(a, weight, z, size, found)


def window(x: Tensor, weight: Tensor, z: Tensor, size: Size) -> None:
    """z becomes a 3x3 weight, in x's dtype, times x itself."""
    if _fast_in_cudnn(x, weight):
        _cudnn_forward(x, weight, z, size, None)
    else:
        conv3_forward(x, None, weight, z, size)


def norm_relu_conv_backward(
    behind: DeferredGrad | NormReluGrad,
    x: Tensor,
    norm: Tensor,
    weight: Tensor,
    size: Size,
    grads: NormGrads | None,
    grad: Tensor | None,
    d: Tensor | None = None,
    to: Tensor | None = None,
) -> None:
    if not _served(x) or (weight.shape[-1] == 1 and weight.shape[0] > LARGEST_K):
        plain.norm_relu_conv_backward(behind, x, norm, weight, size, grads, grad, d, to)
        return
    (weight,) = prepare_weights([weight], x)
    if weight.shape[-1] == 1:
        conv1_backward(_behind(behind, weight), x, norm, weight, grads, grad, d, to)
    elif d is not None or not _fast_in_cudnn(x, weight):
        conv3_backward(_behind(behind, weight), x, norm, weight, size, grads, grad, d, to)
    else:
        _cudnn_backward(behind, x, norm, weight, size, grads, grad, to)


def _behind(behind: DeferredGrad | NormReluGrad, weight: Tensor) -> Tensor:
    """The gradient behind the convolution, [M, K]."""
    dz: Tensor = behind[0].new_empty(len(behind[0]), weight.shape[0])
    if isinstance(behind, DeferredGrad):
        rows.add_line(behind, dz)
    else:
        rows.norm_relu_grad(behind.y, behind.norm, behind.da, behind.line, dz)
    return dz


def _cudnn_forward(a: Tensor, weight: Tensor, z: Tensor, size: Size, found: Tensor | None) -> None:
    with _deterministic():
        own = as_rows(F.conv2d(as_maps(a, *size), weight, padding=1))
    if found is None:
        z.copy_(own)
    else:
        sums.moments(own, found, z)


def _cudnn_backward(
    behind: DeferredGrad | NormReluGrad,
    x: Tensor,
    norm: Tensor,
    weight: Tensor,
    size: Size,
    grads: NormGrads | None,
    grad: Tensor | None,
    to: Tensor | None,
) -> None:
    a = x.new_empty(x.shape)
    if isinstance(behind, DeferredGrad):
        dz = x.new_empty(len(x), weight.shape[0])
        rows.operands(behind, dz, x, norm, a)
    else:
        dz = _behind(behind, weight)
        rows.norm_relu(x, norm, a)
    with _deterministic():
        da, of_weight, _ = torch.ops.aten.convolution_backward(
            as_maps(dz, *size), as_maps(a, *size), weight, None, [1, 1], [1, 1], [1, 1],
            False, [0, 0], 1, [grads is not None, grad is not None, False],
        )  # fmt: skip
    part, strides = None, (0, 0, 0)
    if grad is not None:  # written in the launch that adds up the sums, in its own format
        part = of_weight.contiguous(memory_format=torch.channels_last)
        part = part.permute(0, 2, 3, 1).flatten(1, 2)[None]  # [1, K, 9, c]
        strides = grad.stride(1), grad.stride(3), grad.stride(0)
    if grads is None:
        sums.merge_parts(norm, None, None, part, grad, strides)
    else:
        da = as_rows(da.contiguous(memory_format=torch.channels_last))
        sums.grad_sums(x, norm, da, grads, None, to, part, grad, strides)


@contextmanager
def _deterministic() -> Iterator[None]:
    """The same of cuDNN's kernels in each run, and none that adds up in any order."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before


def _fast_in_cudnn(x: Tensor, weight: Tensor) -> bool:
    return x.dtype == torch.float32 or all(width % 8 == 0 for width in weight.shape[:2])


def _served(x: Tensor) -> bool:
    return x.dtype in TRITON_DTYPES and len(x) > 0
