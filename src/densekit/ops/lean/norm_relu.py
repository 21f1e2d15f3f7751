"""relu(BatchNorm(x)), and the pool after it, saving nothing but x.

What a dense block's layers do to the block's buffer is done here to a whole map: by the stem, the
transitions and the last norm.

    y = relu((x - mean) * scale + shift)      scale = gamma * rstd, shift = beta
    dx = scale * (g - mean(g) - (x - mean) * rstd^2 * mean(g * (x - mean)))
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from densekit.ops.lean.batch_norm import (
    gather_moments,
    mean_and_variance,
    reduce_sums,
    refuse_one_value,
    refuse_second_derivative,
    running_moments,
    several_ranks,
    update_running,
)
from densekit.ops.lean.kernels import kernels_for
from densekit.ops.lean.kernels.plain import NormGrads, Pool
from densekit.ops.lean.layout import as_maps, as_rows, in_compute_format
from densekit.ops.sync_bn import SyncBatchNorm2d


def norm_relu(x: Tensor, norm: Any, pool: Literal["none", "average", "max"] = "none") -> Tensor:
    """[N, C, H, W] -> [N, C, H', W']: as they were; half after the 2x2 average, or the 3x3 max.

    A norm that trains updates its running statistics. What `ops.refusals` names must not be asked
    of it.
    """
    x = in_compute_format(x)
    sync = isinstance(norm, SyncBatchNorm2d)
    if norm.training:
        refuse_one_value(x, sync)
        moments, count = _moments(x.detach(), sync)
        update_running([norm], *mean_and_variance(moments.unsqueeze(0), count, norm))
    else:
        moments, count = running_moments(norm)
    return _norm_relu(
        x, norm.weight, norm.bias, moments, count, norm.eps, norm.training, pool, sync
    )[0]


# The custom ops -----------------------------------------------------------------------------


@torch.library.custom_op("densekit::moments", mutates_args=())
def _moments(x: Tensor, sync: bool) -> tuple[Tensor, Tensor]:
    rows = as_rows(x)
    moments = rows.new_empty(2, rows.shape[1], dtype=torch.float64)
    with torch.cuda.device_of(x):  # Triton launches on torch's current device
        kernels_for(rows).moments(rows, moments)
    if sync and several_ranks():
        return gather_moments(moments, len(rows))
    return moments, moments.new_full((), len(rows))


@_moments.register_fake
def _(x: Tensor, sync: bool) -> tuple[Tensor, Tensor]:
    return x.new_empty(2, x.shape[1], dtype=torch.float64), x.new_empty((), dtype=torch.float64)


@torch.library.custom_op("densekit::norm_relu", mutates_args=())
def _norm_relu(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    moments: Tensor,
    count: Tensor,
    eps: float,
    training: bool,
    pool: str,
    sync: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The map, and for backward the norm and what a max pool took."""
    rows, (h, w) = as_rows(x), x.shape[2:]
    kernels = kernels_for(rows)
    norm = x.new_empty(4, len(gamma), dtype=torch.promote_types(x.dtype, torch.float32))
    h_out, w_out = _pooled(h, w, pool)
    out = rows.new_empty(x.shape[0] * h_out * w_out, x.shape[1])
    taken = torch.empty_like(out if pool == "max" else out[:0], dtype=torch.uint8)
    with torch.cuda.device_of(x):
        kernels.normalisation(moments, count, gamma, beta, eps, norm)
        if pool == "none":
            kernels.norm_relu(rows, norm, out)
        else:
            kernels.norm_relu_pool(rows, norm, out, Pool(h, w, taken if pool == "max" else None))
    return as_maps(out, h_out, w_out), norm, taken


def _pooled(h: int, w: int, pool: str) -> tuple[int, int]:
    if pool == "none":
        return h, w
    return (h // 2, w // 2) if pool == "average" else ((h + 1) // 2, (w + 1) // 2)


@_norm_relu.register_fake
def _(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    moments: Tensor,
    count: Tensor,
    eps: float,
    training: bool,
    pool: str,
    sync: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    n, c, h, w = x.shape
    h, w = _pooled(h, w, pool)
    out = x.new_empty(n, h, w, c).permute(0, 3, 1, 2)
    taken = x.new_empty(n * h * w if pool == "max" else 0, c, dtype=torch.uint8)
    return out, x.new_empty(4, c, dtype=torch.promote_types(x.dtype, torch.float32)), taken


@torch.library.custom_op("densekit::norm_relu_backward", mutates_args=())
def _norm_relu_backward(
    da: Tensor,
    x: Tensor,
    gamma: Tensor,
    norm: Tensor,
    taken: Tensor,
    count: Tensor,
    training: bool,
    pool: str,
    sync: bool,
    needs_x: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, empty if nobody asks, of gamma, and of beta."""
    rows, (h, w) = as_rows(x), x.shape[2:]
    pooled = None if pool == "none" else Pool(h, w, taken if pool == "max" else None)
    kernels = kernels_for(rows)
    da = as_rows(da.contiguous(memory_format=torch.channels_last))
    sums, line = torch.zeros(2, 2, rows.shape[1], dtype=torch.float64, device=x.device)
    reduces = training and sync and several_ranks()
    of_line = line if training and not reduces else None
    grads = NormGrads(sums, torch.empty_like(gamma), torch.empty_like(gamma), count, of_line)
    with torch.cuda.device_of(x):
        kernels.grad_sums(rows, norm, da, grads, pooled)
        if not needs_x:
            return x.new_empty(0), grads.gamma, grads.beta
        if reduces:
            kernels.correction(norm, reduce_sums(sums, sync), count, line)
        dx = torch.empty_like(rows, memory_format=torch.contiguous_format)
        kernels.norm_relu_grad(rows, norm, da, line, dx, pooled)
    return as_maps(dx, h, w), grads.gamma, grads.beta


@_norm_relu_backward.register_fake
def _(
    da: Tensor,
    x: Tensor,
    gamma: Tensor,
    norm: Tensor,
    taken: Tensor,
    count: Tensor,
    training: bool,
    pool: str,
    sync: bool,
    needs_x: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dx = torch.empty_like(x) if needs_x else x.new_empty(0)
    return dx, torch.empty_like(gamma), torch.empty_like(gamma)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, gamma, beta, _, count, _, *ctx.options = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, gamma, *output[1:], count)
    ctx.beta_dtype = beta.dtype


def _backward(ctx: Any, da: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad
    dx, dgamma, dbeta = _norm_relu_backward(da, *ctx.saved_tensors, *ctx.options, needs[0])
    return (
        dx if needs[0] else None,
        dgamma if needs[1] else None,
        dbeta.to(ctx.beta_dtype) if needs[2] else None,
        *[None] * 6,
    )


_norm_relu.register_autograd(_backward, setup_context=_save)
_norm_relu_backward.register_autograd(refuse_second_derivative)
