"""The lean dense block's backward pass; see ops/lean.py for its three ideas."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from densekit.ops.kernels import kernels_for
from densekit.ops.rows import WorkSpace, as_maps, as_rows, as_weight, dropped
from densekit.ops.statistics import refuse_second_derivative, sum_over_ranks


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
        d, owned = as_rows(grad.contiguous(memory_format=torch.channels_last)), False
        lines = torch.zeros_like(moments)
        ends = list(accumulate(len(y) for y in bottlenecks[: len(bottlenecks) // layers]))
        chunks = list(map(slice, [0, *ends], ends or [len(buffer)]))  # as forward cut them
        kernels = kernels_for(buffer)
        work = WorkSpace(buffer, chunks, max(width - k, parameters[2].shape[0]))
        grads = [grad.new_empty(0) for _ in needs]
        for place, weight in enumerate(parameters[2::3], start=1):
            if needs[3 * place]:
                grads[3 * place] = torch.zeros_like(weight)

        def cast(i: int) -> Tensor:
            return as_weight(parameters[3 * i + 2], grad.dtype)

        def corrected(line: Tensor, columns: slice, rows: slice) -> Tensor:
            out = d.new_empty(rows.stop - rows.start, columns.stop - columns.start)
            kernels.add_line(d[rows, columns], buffer[rows, columns], line, out)
            return out

        def line_of(columns: slice) -> Tensor:  # idea 2
            return torch.cat([moments[:1, columns], lines[:, columns]]).to(wide)

        def half(
            i: int,
            weight: Tensor,
            dz: Tensor,
            x: Tensor,
            sums: Tensor,
            before: bool,
            into: tuple[Tensor, Tensor] | None = None,
        ) -> Tensor:
            """From behind a convolution to before its relu, and on from `into` 0 to 1."""
            da = a = work.rows(x)
            place = 3 * i + 3
            again = a if needs[place] else None  # idea 3
            if before:
                da = as_rows(_conv_backward(dz, a, weight, (h, w), 0))
            if into is not None:
                kernels.accumulate(x, norms[i], da, *into, sums, again)
            elif before:
                kernels.grad_sums(x, norms[i], da, sums, None, again)
            else:
                kernels.norm_relu(x, norms[i], a)
            if again is not None:
                grads[place] += _conv_backward(dz, a, weight, (h, w), 1)
            return da

        def norm_backward(i: int, sums: Tensor) -> Tensor:
            found = (sums[1] * norms[i][3], sums[0])
            for place, of in zip((3 * i + 1, 3 * i + 2), found, strict=True):
                grads[place] = of.to(parameters[place - 1].dtype)
            line = torch.zeros_like(sums)
            if training[i]:
                kernels.correction(norms[i], sum_over_ranks(sums, sync), count, line)
            return line

        for layer in reversed(range(layers)):
            i, c = halves * layer, c0 + k * layer
            asked = [any(needs[: 3 * i + j]) for j in range(1, 3 * halves + 2)]
            if not asked[-1]:  # by x, a layer before, or this one's parameters 1 to j
                break
            own = slice(c, c + k)
            dzs: Iterator[Tensor] = map(partial(corrected, line_of(own), own), chunks)
            if masks:
                kept = [as_rows(masks[layer])[rows] for rows in chunks]
                dzs = map(partial(dropped, drop_rate=drop_rate), dzs, kept)
            if bottlenecks:
                ys = bottlenecks[layer * len(chunks) : (layer + 1) * len(chunks)]
                sums, weight = lines.new_zeros(2, ys[0].shape[1]), cast(i + 1)
                pairs = zip(dzs, ys, strict=True)
                das = [half(i + 1, weight, dz, y, sums, asked[5]) for dz, y in pairs]
                if not asked[5]:
                    continue
                line = norm_backward(i + 1, sums).to(wide)
                for y, da in zip(ys, das, strict=True):
                    kernels.norm_relu_grad(y, norms[i + 1], da, line, da)
                dzs = iter(das)
            if not asked[3]:
                continue
            sums, weight = lines.new_zeros(2, c), cast(i)
            to = d if owned else torch.empty_like(d)
            for dz, rows in zip(dzs, chunks, strict=True):
                into = (d[rows, :c], to[rows, :c]) if asked[0] else None
                half(i, weight, dz, buffer[rows, :c], sums, asked[2], into)
            d, owned = to, True
            if asked[2]:
                lines[:, :c] += norm_backward(i, sums)
        if needs[0]:
            whole, first = slice(0, len(d)), slice(0, c0)
            grads[0] = as_maps(corrected(line_of(first), first, whole), h, w)
        return grads


def _conv_backward(dz: Tensor, a: Tensor, weight: Tensor, size: tuple[int, int], of: int) -> Tensor:
    """The gradient of a convolution's input (0) or weight (1)."""
    padding = weight.shape[-1] // 2
    return torch.ops.aten.convolution_backward(
        as_maps(dz, *size), as_maps(a, *size), weight, None, [1, 1], [padding, padding], [1, 1],
        False, [0, 0], 1, [of == 0, of == 1, False],
    )[of]  # fmt: skip


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
