"""The lean dense block's backward pass; see ops/lean.py for its three ideas."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from densekit.ops.kernels import Kernels, kernels_for
from densekit.ops.rows import as_maps, as_rows, as_weight, chunks_of, dropped, empty_rows
from densekit.ops.statistics import correction, refuse_second_derivative, sum_over_ranks


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
        buffer = as_rows(features)
        d = as_rows(grad.contiguous(memory_format=torch.channels_last)).clone()
        lines = torch.zeros_like(moments)
        chunks = chunks_of(features.shape, parameters[2].shape[0], grad.dtype, grad.device)
        kernels = kernels_for(buffer)
        grads = [grad.new_empty(0) for _ in needs]

        def corrected(line: Tensor, columns: slice, rows: slice) -> Tensor:
            out = d.new_empty(rows.stop - rows.start, columns.stop - columns.start)
            kernels.add_line(d[rows, columns], buffer[rows, columns], line, out)
            return out

        def line_of(columns: slice) -> Tensor:  # idea 2
            return torch.cat([moments[:1, columns], lines[:, columns]]).to(wide)

        def conv_backward(i: int, before: bool) -> Callable[[Tensor, Tensor], Tensor]:
            weight, place = parameters[3 * i + 2], 3 * i + 3
            cast, padding = as_weight(weight, grad.dtype), weight.shape[-1] // 2
            if needs[place]:
                grads[place] = torch.zeros_like(weight)

            def half(dz: Tensor, rows: Tensor) -> Tensor:
                a = empty_rows(rows)
                if needs[place]:
                    kernels.norm_relu(rows, norms[i], a)  # idea 3
                da, dw, _ = torch.ops.aten.convolution_backward(
                    as_maps(dz, h, w), as_maps(a, h, w), cast, None, [1, 1], [padding, padding],
                    [1, 1], False, [0, 0], 1, [before, needs[place], False],
                )  # fmt: skip
                if needs[place]:
                    grads[place] += dw
                return as_rows(da) if before else a

            return half

        def norm_backward(i: int, sums: Tensor) -> Tensor:
            found = (sums[1] * norms[i][3], sums[0])
            for place, of in zip((3 * i + 1, 3 * i + 2), found, strict=True):
                grads[place] = of.to(parameters[place - 1].dtype)
            if not training[i]:
                return torch.zeros_like(sums)
            return correction(norms[i], sum_over_ranks(sums, sync), count)

        for layer in reversed(range(layers)):
            i, c = halves * layer, c0 + k * layer
            asked = [any(needs[: 3 * i + j]) for j in range(1, 3 * halves + 2)]
            if not asked[-1]:  # by x, a layer before, or this one's parameters 1 to j
                break
            own = slice(c, c + k)
            dzs = map(partial(corrected, line_of(own), own), chunks)
            if masks:
                kept = [as_rows(masks[layer])[rows] for rows in chunks]
                dzs = map(partial(dropped, drop_rate=drop_rate), dzs, kept)
            if bottlenecks:
                ys = bottlenecks[layer * len(chunks) : (layer + 1) * len(chunks)]
                half, sums, das = (
                    conv_backward(i + 1, asked[5]),
                    lines.new_zeros(2, len(ys[0].T)),
                    [],
                )
                for dz, y in zip(dzs, ys, strict=True):
                    das.append(half(dz, y))
                    if asked[5]:
                        kernels.grad_sums(y, norms[i + 1], das[-1], sums)
                if not asked[5]:
                    continue
                line = norm_backward(i + 1, sums).to(wide)
                dzs = map(partial(_normed_backward, kernels, norms[i + 1], line), ys, das)
            if not asked[3]:
                continue
            half, sums = conv_backward(i, asked[2]), lines.new_zeros(2, c)
            for dz, rows in zip(dzs, chunks, strict=True):
                x = buffer[rows, :c]
                da = half(dz, x)
                if asked[0]:
                    kernels.accumulate(x, norms[i], da, d[rows, :c], sums)
                elif asked[2]:
                    kernels.grad_sums(x, norms[i], da, sums)
            if asked[2]:
                lines[:, :c] += norm_backward(i, sums)
        if needs[0]:
            whole, first = slice(0, len(d)), slice(0, c0)
            grads[0] = as_maps(corrected(line_of(first), first, whole), h, w)
        return grads


def _normed_backward(kernels: Kernels, norm: Tensor, line: Tensor, y: Tensor, da: Tensor) -> Tensor:
    kernels.norm_relu_grad(y, norm, da, line, da)
    return da


@dense_block_backward.register_fake
def _(grad, features, moments, count, parameters, norms, bottlenecks, *rest):  # type: ignore[no-untyped-def]
    (n, width, h, w), needs = features.shape, rest[-1]
    layers = len(norms) // (2 if bottlenecks else 1)
    c0 = width - parameters[-1].shape[0] * layers
    nothing = grad.new_empty(0)
    dx = grad.new_empty(n, h, w, c0).permute(0, 3, 1, 2) if needs[0] else nothing
    pairs = zip(parameters, needs[1:], strict=True)
    return [dx, *(torch.empty_like(p) if asked else grad.new_empty(0) for p, asked in pairs)]


dense_block_backward.register_autograd(refuse_second_derivative)
