"""The kernels of op lean in torch's own operations, for any device and dtype.

They define what the C++ kernels compute too. Tensors in them:

    x, y, z, d, da   [M, c], M = N*H*W pixels by channels: activations and their gradients
    norm             [4, c]: mean, scale = gamma * rstd, shift = beta, rstd; float32 or wider
    moments, found   [2, c], float64: mean, and the sum of squared distances from it
    sums             [2, c], float64: of g and of g * (x - mean)
    line             [2, c], float64: shift and slope of BatchNorm's backward

Moments, sums and lines may be columns of wider ones. The results are written to tensors that the
caller gives; only to a line a function adds. On a CPU each function works on a piece of the rows at
a time, so that its float32 copies stay in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from densekit.ops.lean.layout import as_maps, as_rows

PIECE = 1 << 18  # elements

Size = tuple[int, int]  # of a map: height, width


class Pool(NamedTuple):
    """A pool after relu: 2x2 averages, or with `taken` 3x3 maxima of stride 2 and padding 1."""

    h: int
    w: int
    """Of the maps before it."""
    taken: Tensor | None = None
    """uint8 [M after the pool, c]: which of its window's 9 pixels is the maximum."""


class DeferredGrad(NamedTuple):
    """The gradient of a convolution's output x, not yet computed: add_line of these."""

    d: Tensor
    x: Tensor
    mean: Tensor
    """Of x's columns, [c], float64."""
    line: Tensor


class NormReluGrad(NamedTuple):
    """The gradient of a convolution's output y, which went through norm and relu, not yet computed:
    norm_relu_grad of these.
    """

    y: Tensor
    """The convolution's output, [M, k] like da."""
    norm: Tensor
    da: Tensor
    line: Tensor


class NormGrads(NamedTuple):
    """Where the gradients of a norm go."""

    sums: Tensor
    gamma: Tensor
    beta: Tensor
    values: Tensor
    """How many a channel has, float64."""
    line: Tensor | None
    """None: not wanted, in evaluation mode or before the ranks' sums are added up."""


def prepare_weights(weights: Sequence[Tensor], x: Tensor) -> list[Tensor]:
    """The weights of convolutions as norm_relu_conv and its backward pass take them, for x."""
    return [_cast_weight(weight, x) for weight in weights]


def normalisation(
    moments: Tensor, count: Tensor, gamma: Tensor, beta: Tensor, eps: float, norm: Tensor
) -> None:
    """Computes `norm` from the moments of `count` values."""
    rstd = torch.rsqrt(moments[1] / count + eps)
    norm.copy_(torch.stack([moments[0], gamma * rstd, beta.double(), rstd]))


def correction(norm: Tensor, sums: Tensor, count: Tensor, line: Tensor) -> None:
    """line += what makes scale * g the gradient of BatchNorm's input, from `sums`."""
    scale, rstd = norm[1].double(), norm[3].double()
    line -= sums * torch.stack([scale, scale * rstd.square()]) / count


def finish_grads(norm: Tensor, grads: NormGrads) -> None:
    """From `grads.sums` the rest."""
    grads.gamma.copy_(grads.sums[1] * norm[3])
    grads.beta.copy_(grads.sums[0])
    if grads.line is not None:
        correction(norm, grads.sums, grads.values, grads.line)


def norm_relu(x: Tensor, norm: Tensor, out: Tensor) -> None:
    """out = relu((x - mean) * scale + shift)."""
    for rows in _pieces(x):
        out[rows] = torch.relu(_normed(x[rows], norm))


def norm_relu_pool(x: Tensor, norm: Tensor, out: Tensor, pool: Pool) -> None:
    """norm_relu and the pool after it; a max pool also writes `pool.taken`."""
    a = torch.empty_like(x, memory_format=torch.contiguous_format)
    norm_relu(x, norm, a)
    maps = as_maps(a, pool.h, pool.w)
    if pool.taken is None:
        pooled = F.avg_pool2d(maps, 2)
    else:
        pooled, at = F.max_pool2d(maps, 3, 2, 1, return_indices=True)
        top = 2 * torch.arange(pooled.shape[2], device=x.device).unsqueeze(1) - 1
        left = 2 * torch.arange(pooled.shape[3], device=x.device) - 1
        place = (at // pool.w - top) * 3 + at % pool.w - left
        pool.taken[:] = place.permute(0, 2, 3, 1).reshape(out.shape)
    out[:] = pooled.permute(0, 2, 3, 1).reshape(out.shape)


def moments(z: Tensor, found: Tensor, copy: Tensor | None = None) -> None:
    """Writes z's moments to `found`, and z to `copy` if there is one."""
    if copy is not None:
        copy.copy_(z)
    found.zero_()
    seen = 0
    for rows in _pieces(z):
        piece = _wide(z[rows])
        var, mean = torch.var_mean(piece, 0, correction=0)
        own = torch.stack([mean, var * len(piece)]).double()
        counts = torch.tensor([seen, len(piece)], dtype=torch.float64, device=z.device)
        found.copy_(merge_moments(torch.stack([found, own]), counts) if seen else own)
        seen += len(piece)


def merge_moments(parts: Tensor, counts: Tensor) -> Tensor:
    """The moments of all values, from those of parts [p, 2, c] with `counts` [p] values (Chan)."""
    means, squares = parts.unbind(1)
    counts = counts.unsqueeze(1)
    mean = (means * counts).sum(0) / counts.sum()
    return torch.stack([mean, (squares + counts * (means - mean).square()).sum(0)])


def norm_relu_conv(
    x: Tensor, norm: Tensor, weight: Tensor, z: Tensor, size: Size, found: Tensor | None = None
) -> None:
    """z = convolution of relu(norm(x)) with weight [k, c, 1, 1] or [k, c, 3, 3], same padding.

    `size` is the maps' height and width. Writes z's moments to `found` if it is given.
    """
    weight = _cast_weight(weight, x)
    for rows in _images(x, size):
        a = torch.empty_like(x[rows], memory_format=torch.contiguous_format)
        norm_relu(x[rows], norm, a)
        z[rows] = as_rows(F.conv2d(as_maps(a, *size), weight, padding=weight.shape[-1] // 2))
    if found is not None:
        moments(z, found)


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
    """The backward pass of norm_relu_conv, given the gradient of its output, `behind`.

    Computes what is not None: `grad`, the weight's; `grads` as grad_sums does; and, with g as
    there, `to` = d + g * scale, or `to` = g without d. `to` may be d itself.
    """
    cast, padding = _cast_weight(weight, x), [weight.shape[-1] // 2] * 2
    for written in (grad, None if grads is None else grads.sums):
        if written is not None:
            written.zero_()
    for rows in _images(x, size):
        piece, dz = x[rows], _behind(behind, rows)
        a = torch.empty_like(piece, memory_format=torch.contiguous_format)
        norm_relu(piece, norm, a)
        da, dweight, _ = torch.ops.aten.convolution_backward(
            as_maps(dz, *size), as_maps(a, *size), cast, None, [1, 1], padding, [1, 1],
            False, [0, 0], 1, [grads is not None, grad is not None, False],
        )  # fmt: skip
        if grad is not None:
            grad += dweight
        if grads is None:
            continue
        g = _masked(piece, norm, as_rows(da))
        grads.sums.add_(_sums(g, piece, norm))
        if d is not None and to is not None:
            to[rows] = _wide(d[rows]) + g * norm[1]
        elif to is not None:
            to[rows] = g
    if grads is not None:
        finish_grads(norm, grads)


def grad_sums(
    x: Tensor, norm: Tensor, da: Tensor, grads: NormGrads, pool: Pool | None = None
) -> None:
    """grads.sums = those of g and of g * (x - mean), where g = da where relu was open, else 0; and
    what follows from them.
    """
    da = _unpooled(da, pool)
    grads.sums.zero_()
    for rows in _pieces(x):
        grads.sums.add_(_sums(_masked(x[rows], norm, da[rows]), x[rows], norm))
    finish_grads(norm, grads)


def norm_relu_grad(
    x: Tensor, norm: Tensor, da: Tensor, line: Tensor, out: Tensor, pool: Pool | None = None
) -> None:
    """out = g * scale + shift + (x - mean) * slope. out may be da."""
    da = _unpooled(da, pool)
    shift, slope = line.to(norm.dtype)
    for rows in _pieces(x):
        g = _masked(x[rows], norm, da[rows])
        out[rows] = g * norm[1] + (shift + _sloping(x[rows], norm[0], slope))


def add_line(behind: DeferredGrad, out: Tensor) -> None:
    """out = d + shift + (x - mean) * slope."""
    d, x, *vectors = behind
    mean, (shift, slope) = (vector.to(_wide(x[:0]).dtype) for vector in vectors)
    for rows in _pieces(x):
        out[rows] = _wide(d[rows]) + shift + _sloping(x[rows], mean, slope)


def _pieces(x: Tensor) -> Iterator[slice]:
    """The rows in pieces of at most PIECE elements; on a GPU in one."""
    rows = max(1, PIECE // x.shape[1]) if x.is_cpu else max(1, len(x))
    for start in range(0, len(x), rows):
        yield slice(start, start + rows)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _normed(x: Tensor, norm: Tensor) -> Tensor:
    return (_wide(x) - norm[0]) * norm[1] + norm[2]


def _masked(x: Tensor, norm: Tensor, da: Tensor) -> Tensor:
    return torch.where(_normed(x, norm) <= 0, 0.0, _wide(da))  # NaN passes, as in torch's relu


def _sloping(x: Tensor, mean: Tensor, slope: Tensor) -> Tensor:
    """(x - mean) * slope, and 0 where slope is 0: in evaluation mode a NaN pixel adds nothing."""
    return torch.where(slope == 0, 0.0, (_wide(x) - mean) * slope)


def _sums(g: Tensor, x: Tensor, norm: Tensor) -> Tensor:
    return torch.stack([g.sum(0), (g * (_wide(x) - norm[0])).sum(0)]).double()


def _images(x: Tensor, size: Size) -> Iterator[slice]:
    """The rows in pieces of whole images; on a GPU in one."""
    image = size[0] * size[1]
    rows = max(1, PIECE // (image * x.shape[1])) * image if x.is_cpu else max(1, len(x))
    for start in range(0, len(x), rows):
        yield slice(start, min(start + rows, len(x)))


def _cast_weight(weight: Tensor, x: Tensor) -> Tensor:
    return weight.to(x.dtype).contiguous(memory_format=torch.channels_last)


def _behind(behind: DeferredGrad | NormReluGrad, rows: slice) -> Tensor:
    whole = behind.d if isinstance(behind, DeferredGrad) else behind.da
    dz = torch.empty_like(whole[rows], memory_format=torch.contiguous_format)
    if isinstance(behind, DeferredGrad):
        add_line(behind._replace(d=behind.d[rows], x=behind.x[rows]), dz)
    else:
        norm_relu_grad(behind.y[rows], behind.norm, behind.da[rows], behind.line, dz)
    return dz


def _unpooled(da: Tensor, pool: Pool | None) -> Tensor:
    """The gradient of the pool's input, [M, c], from that of its output."""
    if pool is None:
        return da
    h, w, taken = pool
    if taken is None:
        maps = da.view(-1, h // 2, w // 2, da.shape[1]) * 0.25
        full = maps.repeat_interleave(2, 1).repeat_interleave(2, 2)
        return F.pad(full, (0, 0, 0, w % 2, 0, h % 2)).view(-1, da.shape[1])
    ph, pw, c = (h + 1) // 2, (w + 1) // 2, da.shape[1]
    n = len(da) // (ph * pw)
    place = taken.view(n, ph, pw, c).long()
    row = 2 * torch.arange(ph, device=da.device).view(1, ph, 1, 1) - 1 + place // 3
    column = 2 * torch.arange(pw, device=da.device).view(1, 1, pw, 1) - 1 + place % 3
    full = torch.zeros(n, h * w, c, dtype=_wide(da[:0]).dtype, device=da.device)
    at = (row * w + column).view(n, ph * pw, c)
    return full.scatter_add_(1, at, _wide(da).view(n, ph * pw, c)).view(n * h * w, c)
