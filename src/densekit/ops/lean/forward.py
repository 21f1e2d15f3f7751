"""The lean dense block: exact, without the copies that make DenseNets take memory.

M = N*H*W pixels, c the channels that a layer reads, k growth rate, K bottleneck width. One buffer
[M, C + L*k] (a channels_last map, seen as rows) holds every feature; nothing is concatenated.

1. Shared statistics. In training, a feature's batch mean and variance do not depend on the layer
   that reads it; only gamma and beta do. They are taken once, when the feature is written, instead
   of once for each of its readers.
2. Deferred correction. BatchNorm's backward is dx = scale * g + shift + slope * (x - mean). Both
   vectors add up over all readers, so the line is applied once, when all have been gone through.
3. Only the buffer and the bottleneck outputs are saved. Normalised activations are computed again
   in backward, elementwise; no convolution runs twice, and running statistics are touched once.

Half a layer, norm-relu-conv, is one pass over memory, forward and backward: it is normalised and
multiplied in the cache. docs/concepts/dense-block.md has the whole of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densekit.ops.lean.backward import dense_block_backward
from densekit.ops.lean.batch_norm import (
    mean_and_variance,
    over_ranks,
    refuse_one_value,
    running,
    several_ranks,
    update_running,
)
from densekit.ops.lean.kernels import kernels_for
from densekit.ops.lean.layout import as_computed, as_maps, as_rows, dropped
from densekit.ops.sync_bn import SyncBatchNorm2d


def dense_block(x: Tensor, layers: Sequence[Any]) -> Tensor:
    """[N, C, H, W] -> [N, C + L*k, H, W]. Norms that train update their running statistics.

    What `ops.refusals` names must not be asked of it.
    """
    x, first = as_computed(x), layers[0]
    sync = isinstance(first.norm1, SyncBatchNorm2d)
    norms = [norm for layer in layers for norm in _norms(layer)]
    training = [norm.training for norm in norms]
    if any(training):
        refuse_one_value(x, sync)
    parameters = [parameter for layer in layers for parameter in _parameters(layer)]
    recorded = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *parameters))
    nothing = x.new_empty(0)
    features, moments, inner, count, *_ = _dense_block(
        x,
        parameters,
        [nothing if norm.training else running(norm)[0] for norm in norms],
        [norm.eps for norm in norms],
        training,
        first.drop_rate if first.training else 0.0,
        first.bottleneck,
        sync,
        recorded,
    )
    if any(training):
        shared = mean_and_variance(moments.unsqueeze(0), count, first.norm1)
        own = mean_and_variance(inner, count, first.norm1)
        of = [
            [part[i // 2] for part in own]
            if first.bottleneck and i % 2
            else [part[0, : norm.num_features] for part in shared]
            for i, norm in enumerate(norms)
        ]
        trained = [i for i, norm in enumerate(norms) if norm.training]
        update_running([norms[i] for i in trained], *zip(*(of[i] for i in trained), strict=True))
    return features


def _norms(layer: Any) -> list[nn.BatchNorm2d]:
    return [layer.norm1, layer.norm2] if layer.bottleneck else [layer.norm1]


def _parameters(layer: Any) -> list[Tensor]:
    """gamma, beta and weight of each half: norm1, conv1, and behind a bottleneck norm2, conv2."""
    halves = [(layer.norm1, layer.conv1)]
    if layer.bottleneck:
        halves.append((layer.norm2, layer.conv2))
    return [t for norm, conv in halves for t in (norm.weight, norm.bias, conv.weight)]


# Forward ------------------------------------------------------------------------------------


@torch.library.custom_op(
    # torch before 2.12 takes only a sequence of tags
    "densekit::dense_block",
    mutates_args=(),
    tags=(torch.Tag.nondeterministic_seeded,),
)
def _dense_block(
    x: Tensor,
    parameters: list[Tensor],
    known: list[Tensor],
    eps: list[float],
    training: list[bool],
    drop_rate: float,
    bottleneck: bool,
    sync: bool,
    recorded: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """Features, their moments, those of the bottlenecks [L, 2, K], the count of values.

    And for backward, if it is `recorded`: norms, bottlenecks [M, K], and dropout's masks. A norm
    that trains takes the batch's moments, another the `known` ones.
    """
    with torch.autocast(x.device.type, enabled=False):
        (n, c0, h, w), halves = x.shape, 2 if bottleneck else 1
        k, layers, m = parameters[-1].shape[0], len(eps) // halves, n * h * w
        wide = torch.promote_types(x.dtype, torch.float32)
        buffer = x.new_empty(m, c0 + layers * k)
        moments = torch.zeros(2, c0 + layers * k, dtype=torch.float64, device=x.device)
        inner = moments.new_zeros(layers if bottleneck else 0, 2, parameters[2].shape[0])
        count = moments.new_tensor(float(m))
        norms, bottlenecks, masks = [], [], []
        kernels = kernels_for(buffer)

        def over_all(found: Tensor) -> Tensor:
            nonlocal count
            if sync and several_ranks():
                found, count = over_ranks(found, m)
            return found

        def half(i: int, inputs: Tensor, batch: Tensor, z: Tensor, found: Tensor | None) -> None:
            gamma, beta, weight = parameters[3 * i : 3 * i + 3]
            statistics = (batch, count) if training[i] else (known[i], torch.ones_like(count))
            norm = x.new_empty(4, gamma.shape[0], dtype=wide)
            kernels.normalisation(*statistics, gamma, beta, eps[i], norm)
            kernels.norm_relu_conv(inputs, norm, weight, z, (h, w), found)
            norms.append(norm)

        shared = any(training)  # idea 1
        found = moments.new_zeros(2, c0)
        if shared:
            kernels.moments(as_rows(x), found, buffer[:, :c0])
            moments[:, :c0] = over_all(found)
        else:
            buffer[:, :c0] = as_rows(x)
        for layer in range(layers):
            i, c = halves * layer, c0 + k * layer
            inputs, batch, z = buffer[:, :c], moments[:, :c], buffer[:, c : c + k]
            if bottleneck:
                y = x.new_empty(m, inner.shape[2])
                half(i, inputs, batch, y, inner[layer] if training[i + 1] else None)
                inner[layer] = over_all(inner[layer])
                bottlenecks.append(y)
                i, inputs, batch = i + 1, y, inner[layer]
            found = moments.new_zeros(2, k)
            half(i, inputs, batch, z, found if shared and drop_rate == 0 else None)
            if drop_rate > 0:
                masks.append(_drawn(x.new_empty(n, h, w, k).permute(0, 3, 1, 2), drop_rate))
                z.copy_(dropped(z, as_rows(masks[-1]), drop_rate))
                if shared:
                    kernels.moments(z, found)
            moments[:, c : c + k] = over_all(found)
        if not recorded:
            norms, bottlenecks, masks = [], [], []
        return as_maps(buffer, h, w), moments, inner, count, norms, bottlenecks, masks


def _drawn(like: Tensor, drop_rate: float) -> Tensor:
    """What F.dropout keeps, drawn as it draws: the reference's masks with the reference's seed."""
    return F.dropout(torch.ones_like(like), drop_rate) > 0


@_dense_block.register_fake
def _(
    x: Tensor,
    parameters: list[Tensor],
    known: list[Tensor],
    eps: list[float],
    training: list[bool],
    drop_rate: float,
    bottleneck: bool,
    sync: bool,
    recorded: bool,
) -> tuple[Any, ...]:
    n, c0, h, w = x.shape
    layers = len(eps) // (2 if bottleneck else 1)
    k, width = parameters[-1].shape[0], parameters[2].shape[0]
    wide = torch.promote_types(x.dtype, torch.float32)

    def maps(channels: int, dtype: torch.dtype) -> Tensor:
        return x.new_empty(n, h, w, channels, dtype=dtype).permute(0, 3, 1, 2)

    def vectors(*shape: int) -> Tensor:
        return x.new_empty(shape, dtype=torch.float64)

    norms = [x.new_empty(4, gamma.shape[0], dtype=wide) for gamma in parameters[0::3]]
    ys = [x.new_empty(n * h * w, width) for _ in range(layers if bottleneck else 0)]
    masks = [maps(k, torch.bool) for _ in range(layers)] if drop_rate > 0 else []
    return (
        maps(c0 + k * layers, x.dtype),
        vectors(2, c0 + k * layers),
        vectors(layers if bottleneck else 0, 2, width),
        vectors(),
        *((norms, ys, masks) if recorded else ([], [], [])),
    )


# Autograd -----------------------------------------------------------------------------------


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    _, parameters, _, _, ctx.training, ctx.drop_rate, _, ctx.sync, _ = inputs
    features, moments, inner, count, *lists = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(moments, inner, count, *(t for part in lists for t in part))
    lists = [parameters, *lists]
    ctx.lengths = [len(part) for part in lists]
    ctx.save_for_backward(features, moments, count, *(t for part in lists for t in part))


def _backward(ctx: Any, grad: Tensor, *_: None) -> tuple[Any, ...]:
    features, moments, count, *rest = ctx.saved_tensors
    saved = iter(rest)
    lists = [[next(saved) for _ in range(length)] for length in ctx.lengths]
    needs = [ctx.needs_input_grad[0], *ctx.needs_input_grad[1]]
    found = dense_block_backward(
        grad, features, moments, count, *lists, ctx.training, ctx.drop_rate, ctx.sync, needs
    )
    dx, *grads = [g if asked else None for g, asked in zip(found, needs, strict=True)]
    return dx, grads, [None] * len(ctx.training), *[None] * 6


_dense_block.register_autograd(_backward, setup_context=_save)
