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
    gather_moments,
    mean_and_variance,
    refuse_one_value,
    running_moments,
    several_ranks,
    update_running,
)
from densekit.ops.lean.kernels import kernels_for
from densekit.ops.lean.layout import apply_dropout_mask, as_maps, as_rows, in_compute_format
from densekit.ops.sync_bn import SyncBatchNorm2d


def dense_block(x: Tensor, layers: Sequence[Any]) -> Tensor:
    """[N, C, H, W] -> [N, C + L*k, H, W]. Norms that train update their running statistics.

    What `ops.refusals` names must not be asked of it.
    """
    x, first = in_compute_format(x), layers[0]
    sync = isinstance(first.norm1, SyncBatchNorm2d)
    norms = [norm for layer in layers for norm in _norms(layer)]
    training = [norm.training for norm in norms]
    if any(training):
        refuse_one_value(x, sync)
    parameters = [parameter for layer in layers for parameter in _layer_parameters(layer)]
    recorded = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *parameters))
    nothing = x.new_empty(0)
    features, moments, inner, count, *_ = _dense_block(
        x,
        parameters,
        [nothing if norm.training else running_moments(norm)[0] for norm in norms],
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


def _layer_parameters(layer: Any) -> list[Tensor]:
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
    """Features, their moments, those of the bottlenecks [L, 2, K], and how many values each has.

    With `recorded` also what backward needs: norms, bottlenecks [M, K], and dropout's masks. A norm
    in training takes the batch's moments, one in evaluation those in `known`.
    """
    with torch.cuda.device_of(x), torch.autocast(x.device.type, enabled=False):
        block = _Forward(x, parameters, known, eps, training, bottleneck, sync)
        masks = [block.add_layer(layer, drop_rate) for layer in range(block.layers)]
        kept = (block.norms, block.bottlenecks, masks if drop_rate > 0 else [])
        features = as_maps(block.buffer, block.h, block.w)
        return (
            features,
            block.moments,
            block.inner,
            block.count,
            *(kept if recorded else ([], [], [])),
        )


class _Forward:
    """A forward pass. The buffer [M, C + L*k] and its moments grow by k columns a layer."""

    def __init__(
        self,
        x: Tensor,
        parameters: list[Tensor],
        known: list[Tensor],
        eps: list[float],
        training: list[bool],
        bottleneck: bool,
        sync: bool,
    ) -> None:
        self.parameters, self.known, self.eps, self.training = parameters, known, eps, training
        (n, self.c0, self.h, self.w), self.bottleneck = x.shape, bottleneck
        self.k, self.m = parameters[-1].shape[0], n * self.h * self.w
        self.layers = len(eps) // (2 if bottleneck else 1)
        self.wide = torch.promote_types(x.dtype, torch.float32)
        channels, bottleneck_width = self.c0 + self.layers * self.k, parameters[2].shape[0]
        self.buffer = x.new_empty(self.m, channels)
        self.moments = torch.zeros(2, channels, dtype=torch.float64, device=x.device)
        self.inner = self.moments.new_zeros(self.layers if bottleneck else 0, 2, bottleneck_width)
        self.count, self.one = self.moments.new_full((), self.m), self.moments.new_ones(())
        self.norms: list[Tensor] = []
        self.bottlenecks: list[Tensor] = []
        self.kernels = kernels_for(self.buffer)
        self.weights = self.kernels.prepare_weights(parameters[2::3], self.buffer)
        self.takes_statistics = any(training)
        self.gathers = sync and self.takes_statistics and several_ranks()
        self._copy_input(as_rows(x))

    def _copy_input(self, rows: Tensor) -> None:
        own = self.buffer[:, : self.c0]
        if self.takes_statistics:
            found = self.moments[:, : self.c0]
            self.kernels.moments(rows, found, own)
            self._over_ranks(found)
        else:
            own[:] = rows

    def add_layer(self, layer: int, drop_rate: float) -> Tensor:
        """Writes the layer's k columns and their moments; returns what dropout keeps, if it is on.

        The moments of columns are taken once, here, for all layers that will read them (idea 1).
        """
        c = self.c0 + self.k * layer
        x, batch, z = self.buffer[:, :c], self.moments[:, :c], self.buffer[:, c : c + self.k]
        i = 2 * layer if self.bottleneck else layer
        if self.bottleneck:
            y = x.new_empty(self.m, self.inner.shape[2])
            self._half(i, x, batch, y, self.inner[layer] if self.training[i + 1] else None)
            self._over_ranks(self.inner[layer])
            self.bottlenecks.append(y)
            i, x, batch = i + 1, y, self.inner[layer]
        found = self.moments[:, c : c + self.k]
        in_one_pass = self.takes_statistics and drop_rate == 0
        self._half(i, x, batch, z, found if in_one_pass else None)
        mask = z.new_empty(0)
        if drop_rate > 0:
            n = self.m // (self.h * self.w)
            like = z.new_empty(n, self.h, self.w, self.k).permute(0, 3, 1, 2)
            mask = _draw_mask(like, drop_rate)
            z.copy_(apply_dropout_mask(z, as_rows(mask), drop_rate))
            if self.takes_statistics:
                self.kernels.moments(z, found)
        self._over_ranks(found)
        return mask

    def _half(self, i: int, x: Tensor, batch: Tensor, z: Tensor, found: Tensor | None) -> None:
        """Norm i, relu and the convolution after it: x -> z; `found` becomes z's moments."""
        gamma, beta, _ = self.parameters[3 * i : 3 * i + 3]
        moments, count = batch, self.count
        if not self.training[i]:
            moments, count = self.known[i], self.one
        norm = x.new_empty(4, gamma.shape[0], dtype=self.wide)
        self.kernels.normalisation(moments, count, gamma, beta, self.eps[i], norm)
        self.kernels.norm_relu_conv(x, norm, self.weights[i], z, (self.h, self.w), found)
        self.norms.append(norm)

    def _over_ranks(self, found: Tensor) -> None:
        """Where BatchNorm is synchronised, `found` becomes the moments of all ranks' values."""
        if self.gathers:
            found[:], self.count = gather_moments(found, self.m)


def _draw_mask(like: Tensor, drop_rate: float) -> Tensor:
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
