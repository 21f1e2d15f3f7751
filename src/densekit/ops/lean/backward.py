"""The lean dense block's backward pass; forward.py explains its three ideas.

BatchNorm's backward is dx = scale * g + shift + slope * (x - mean), where g is the gradient after
the norm, as far as relu was open. Every layer that reads a column adds scale * g to the column's
gradient at once, and its shift and slope to `lines`. When all readers are done, the sum of the
lines is applied, once (idea 2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from densekit.ops.lean.batch_norm import (
    reduce_sums,
    refuse_second_derivative,
    several_ranks,
)
from densekit.ops.lean.kernels import kernels_for
from densekit.ops.lean.kernels.plain import DeferredGrad, NormGrads, NormReluGrad
from densekit.ops.lean.layout import apply_dropout_mask, as_maps, as_rows, contiguous_weight


@torch.library.custom_op("densekit::dense_block_backward", mutates_args=())
def dense_block_backward(
    grad: Tensor,
    features: Tensor,
    moments: Tensor,
    count: Tensor,
    parameters: list[Tensor],
    norms: list[Tensor],
    bottlenecks: list[Tensor],
    masks: list[Tensor],
    training: list[bool],
    drop_rate: float,
    sync: bool,
    needs: list[bool],
) -> list[Tensor]:
    """The gradients of x and of each parameter; empty where `needs` says that none is wanted."""
    with torch.cuda.device_of(grad), torch.autocast(grad.device.type, enabled=False):
        block = _Backward(
            grad, features, moments, count, parameters, norms, bottlenecks, training, sync, needs
        )
        for layer in reversed(range(block.layers)):
            if not block.wanted(block.halves * (layer + 1)):
                break
            block.through_layer(layer, masks[layer] if masks else None, drop_rate)
        return block.gradients(grad)


class _Backward:
    """A backward pass, from the last layer to the first.

    `d` [M, C + L*k] is the buffer's gradient, as far as its readers have been gone through, without
    their `lines` [2, C + L*k]: shift and slope of each column.
    """

    def __init__(
        self,
        grad: Tensor,
        features: Tensor,
        moments: Tensor,
        count: Tensor,
        parameters: list[Tensor],
        norms: list[Tensor],
        bottlenecks: list[Tensor],
        training: list[bool],
        sync: bool,
        needs: list[bool],
    ) -> None:
        self.parameters, self.norms, self.bottlenecks = parameters, norms, bottlenecks
        self.moments, self.count, self.training, self.sync = moments, count, training, sync
        self.needs = needs  # of x, and then gamma, beta and weight of each half layer
        (_, channels, self.h, self.w), self.halves = features.shape, 2 if bottlenecks else 1
        self.k, self.layers = parameters[-1].shape[0], len(norms) // self.halves
        self.c0, self.wide = channels - self.k * self.layers, norms[0].dtype
        self.buffer = as_rows(features)
        self.d = as_rows(grad.contiguous(memory_format=torch.channels_last))
        self.d_is_ours = False  # until then it is the caller's, and must not be written to
        self.lines = torch.zeros_like(moments)
        width = bottlenecks[0].shape[1] if bottlenecks else 0
        self.inner_lines = moments.new_zeros(self.layers, 2, width)
        self.da = torch.empty_like(bottlenecks[0] if bottlenecks else self.d[:0])
        self.grads = [grad.new_empty(0) for _ in needs]
        self.kernels = kernels_for(self.buffer)
        self.weights = self.kernels.prepare_weights(parameters[2::3], self.buffer)

    def wanted(self, half: int, of_half: int = 0) -> bool:
        """Whether a gradient is wanted of x, of anything before `half`, or of the first `of_half`
        of its own parameters: gamma, beta, weight."""
        return any(self.needs[: 1 + 3 * half + of_half])

    def through_layer(self, layer: int, mask: Tensor | None, drop_rate: float) -> None:
        i, c = self.halves * layer, self.c0 + self.k * layer
        own = self._columns(slice(c, c + self.k))
        if mask is not None:
            dz = apply_dropout_mask(self._with_line(own), as_rows(mask), drop_rate)
            own = DeferredGrad(dz, dz, own.mean, torch.zeros_like(own.line))
        behind: DeferredGrad | NormReluGrad = own
        if self.bottlenecks:
            y = self.bottlenecks[layer]
            line = self.inner_lines[layer]
            self._half(i + 1, behind, y, line, None, self.da)
            behind = NormReluGrad(y, self.norms[i + 1], self.da, line)
        if self.wanted(i, of_half=3):
            to = self.d if self.d_is_ours else torch.empty_like(self.d)
            into = (self.d[:, :c], to[:, :c]) if self.wanted(i) else (None, None)
            self._half(i, behind, self.buffer[:, :c], self.lines[:, :c], *into)
            self.d, self.d_is_ours = to, True

    def _half(
        self,
        i: int,
        behind: DeferredGrad | NormReluGrad,
        x: Tensor,
        line: Tensor,
        d: Tensor | None,
        to: Tensor | None,
    ) -> None:
        """Norm i, relu and convolution backward, from the gradient behind the convolution.

        Keeps the gradients of the parameters; what goes to `to`, if that is wanted, says
        norm_relu_conv_backward. Adds to `line` what x's gradient lacks, [2, c].
        """
        place, norm = 1 + 3 * i, self.norms[i]
        gamma, beta, weight = self.parameters[3 * i : 3 * i + 3]
        grads = grad = None
        reduces = self.training[i] and self.sync and several_ranks()
        if self.wanted(i, of_half=2):
            grads = NormGrads(
                line.new_empty(line.shape),
                torch.empty_like(gamma),
                torch.empty_like(beta),
                self.count,
                line if self.training[i] and not reduces else None,
            )
            self.grads[place : place + 2] = grads.gamma, grads.beta
        if self.needs[place + 2]:
            grad = self.grads[place + 2] = torch.empty_like(
                contiguous_weight(weight), dtype=self.wide
            )
        self.kernels.norm_relu_conv_backward(
            behind, x, norm, self.weights[i], (self.h, self.w), grads, grad, d, to
        )
        if grads is not None and reduces:
            self.kernels.correction(norm, reduce_sums(grads.sums, self.sync), self.count, line)

    def _columns(self, columns: slice) -> DeferredGrad:
        mean, line = self.moments[0, columns], self.lines[:, columns]
        return DeferredGrad(self.d[:, columns], self.buffer[:, columns], mean, line)

    def _with_line(self, deferred: DeferredGrad) -> Tensor:
        out = torch.empty_like(deferred.d, memory_format=torch.contiguous_format)
        self.kernels.add_line(deferred, out)
        return out

    def gradients(self, grad: Tensor) -> list[Tensor]:
        """All that was wanted, in the dtypes of x and of the parameters."""
        if self.needs[0]:
            dx = self._with_line(self._columns(slice(0, self.c0)))
            self.grads[0] = as_maps(dx, self.h, self.w)
        like = (grad, *self.parameters)
        return [found.to(of.dtype) for found, of in zip(self.grads, like, strict=True)]


@dense_block_backward.register_fake
def _(
    grad: Tensor,
    features: Tensor,
    moments: Tensor,
    count: Tensor,
    parameters: list[Tensor],
    norms: list[Tensor],
    bottlenecks: list[Tensor],
    masks: list[Tensor],
    training: list[bool],
    drop_rate: float,
    sync: bool,
    needs: list[bool],
) -> list[Tensor]:
    n, width, h, w = features.shape
    layers = len(norms) // (2 if bottlenecks else 1)
    c0 = width - parameters[-1].shape[0] * layers
    nothing = grad.new_empty(0)
    dx = grad.new_empty(n, h, w, c0).permute(0, 3, 1, 2) if needs[0] else nothing
    pairs = zip(parameters, needs[1:], strict=True)
    return [dx, *(torch.empty_like(p) if asked else grad.new_empty(0) for p, asked in pairs)]


dense_block_backward.register_autograd(refuse_second_derivative)
