"""The lean dense block's backward pass; see ops/lean.py for its three ideas."""

from __future__ import annotations

import torch
from torch import Tensor

from densekit.ops.lean.batch_norm import refuse_second_derivative, sum_over_ranks
from densekit.ops.lean.kernels import kernels_for
from densekit.ops.lean.kernels.plain import Corrected, Normed
from densekit.ops.lean.layout import as_maps, as_rows, dense, dropped


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
    """The gradients of x and of each parameter; empty where `needs` says that nobody asks."""
    with torch.autocast(grad.device.type, enabled=False):
        (_, width, h, w), halves = features.shape, 2 if bottlenecks else 1
        k, layers = parameters[-1].shape[0], len(norms) // halves
        c0, wide = width - k * layers, norms[0].dtype
        buffer, d = as_rows(features), as_rows(grad.contiguous(memory_format=torch.channels_last))
        lines, owned = torch.zeros_like(moments), False
        kernels = kernels_for(buffer)
        grads = [grad.new_empty(0) for _ in needs]
        da = torch.empty_like(bottlenecks[0] if bottlenecks else d[:0])

        def corrected(columns: slice) -> Corrected:  # idea 2
            line = torch.cat([moments[:1, columns], lines[:, columns]]).to(wide)
            return Corrected(d[:, columns], buffer[:, columns], line)

        def added(behind: Corrected) -> Tensor:
            out = torch.empty_like(behind.d, memory_format=torch.contiguous_format)
            kernels.add_line(*behind, out)
            return out

        def half(
            i: int, behind: Corrected | Normed, x: Tensor, before: bool, *into: Tensor | None
        ) -> Tensor:
            """From behind norm i's convolution to before the norm; its correction, [2, c]."""
            sums, weight, place = lines.new_zeros(2, x.shape[1]), parameters[3 * i + 2], 3 * i + 3
            if needs[place]:
                grads[place] = torch.zeros_like(dense(weight), dtype=wide)
            asked = (sums if before else None, grads[place] if needs[place] else None)
            kernels.norm_relu_conv_backward(behind, x, norms[i], weight, (h, w), *asked, *into)
            line = torch.zeros_like(sums)
            if before:
                grads[3 * i + 1], grads[3 * i + 2] = sums[1] * norms[i][3], sums[0]
                if training[i]:
                    kernels.correction(norms[i], sum_over_ranks(sums, sync), count, line)
            return line

        for layer in reversed(range(layers)):
            i, c = halves * layer, c0 + k * layer
            asked = [any(needs[: 3 * i + j]) for j in range(1, 3 * halves + 2)]
            if not asked[-1]:  # by x, a layer before, or this one's parameters 1 to j
                break
            own = corrected(slice(c, c + k))
            if masks:
                dz = dropped(added(own), as_rows(masks[layer]), drop_rate)
                own = Corrected(dz, dz, torch.zeros_like(own.line))
            behind: Corrected | Normed = own
            if bottlenecks:
                y = bottlenecks[layer]
                line = half(i + 1, behind, y, asked[5], None, da)
                behind = Normed(y, norms[i + 1], da, line.to(wide))
            if asked[3]:
                to = d if owned else torch.empty_like(d)
                into = (d[:, :c], to[:, :c]) if asked[0] else (None, None)
                lines[:, :c] += half(i, behind, buffer[:, :c], asked[2], *into)
                d, owned = to, True
        if needs[0]:
            grads[0] = as_maps(added(corrected(slice(0, c0))), h, w)
        like = (grad, *parameters)
        return [found.to(of.dtype) for found, of in zip(grads, like, strict=True)]


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
