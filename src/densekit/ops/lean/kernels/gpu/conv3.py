"""norm, relu and the 3x3 convolution behind them, for widths that cuDNN's fast kernels do not have.

Forward, a tile of rows is normalised once for each of 3 row offsets, not once for each of 9 taps:
the 3 column offsets are 3 products of the same tile, added up with their rows shifted by one.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from densekit.ops.lean.kernels.gpu.sums import merge_parts, merge_tile_moments, store_tile_moments
from densekit.ops.lean.kernels.gpu.tiles import (
    COUNTS,
    at_least_16,
    deal_out,
    load_rows,
    load_vector,
    normed,
    relu,
    store_rows,
)
from densekit.ops.lean.kernels.plain import NormGrads, Size


@triton.jit(do_not_specialize=COUNTS)
def conv3_kernel(
    x, norm, w, z, part, M, c, K, H, W, s_x, s_k, s_c, s_tap, s_z,
    NORM: tl.constexpr, STATS: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """z of BM - 2 rows. Row r of the products before, here, after goes to rows r + 1, r, r - 1."""
    tile = tl.program_id(0)
    i = tl.arange(0, BM)
    rows = tile * (BM - 2) - 1 + i
    ks = tl.program_id(1) * BK + tl.arange(0, BK)
    inside = (rows >= 0) & (rows < M)
    px = rows % W
    py = rows // W % H
    before = tl.zeros([BM, BK], tl.float32)
    here = tl.zeros([BM, BK], tl.float32)
    after = tl.zeros([BM, BK], tl.float32)
    parts = tl.cdiv(c, BC)
    for step in range(0, 3 * parts):
        dy = step // parts - 1
        ch = step % parts * BC + tl.arange(0, BC)
        live = ch < c
        good = inside & (py + dy >= 0) & (py + dy < H)
        v = load_rows(x, rows + dy * W, ch, s_x, good[:, None] & live[None, :])
        if NORM:
            mean = load_vector(norm, ch, live)
            scale = load_vector(norm + c, ch, live)
            shift = load_vector(norm + 2 * c, ch, live)
            v = tl.where(good[:, None], relu(normed(v, mean, scale, shift)), 0.0).to(v.dtype)
        tap = w + ks[None, :] * s_k + ch[:, None] * s_c + (dy + 1) * 3 * s_tap
        there = (ks < K)[None, :] & live[:, None]
        wt = tl.load(tap, mask=there, other=0.0)
        before = tl.dot(v, wt, before, input_precision="ieee")
        wt = tl.load(tap + s_tap, mask=there, other=0.0)
        here = tl.dot(v, wt, here, input_precision="ieee")
        wt = tl.load(tap + 2 * s_tap, mask=there, other=0.0)
        after = tl.dot(v, wt, after, input_precision="ieee")
    up = tl.broadcast_to(tl.maximum(i - 1, 0)[:, None], (BM, BK))
    down = tl.broadcast_to(tl.minimum(i + 1, BM - 1)[:, None], (BM, BK))
    acc = here + tl.where((px > 0)[:, None], tl.gather(before, up, 0), 0.0)
    acc += tl.where((px < W - 1)[:, None], tl.gather(after, down, 0), 0.0)
    good = inside & (i > 0) & (i < BM - 1)
    out = acc.to(z.dtype.element_ty)
    store_rows(z, rows, ks, s_z, good[:, None] & (ks < K)[None, :], out)
    if STATS:
        count = tl.minimum(M - tile * (BM - 2), BM - 2).to(tl.float32)
        store_tile_moments(out.to(tl.float32), good, count, part, tile, ks, K)


def conv3_forward(
    x: Tensor,
    norm: Tensor | None,
    weight: Tensor,
    z: Tensor,
    size: Size,
    found: Tensor | None = None,
) -> None:
    """z becomes weight times relu(norm(x)), or times x; `found` its moments. Not for float32, which
    is cuDNN's."""
    (m, c), k, bm = x.shape, weight.shape[0], 128
    step, bk = bm - 2, at_least_16(k, 64)
    tiles = triton.cdiv(m, step)
    part = None if found is None else x.new_empty(tiles, 2, k, dtype=torch.float32)
    conv3_kernel[(tiles, triton.cdiv(k, bk))](
        x, norm, weight, z, part, m, c, k, *size, x.stride(0), *_strides(weight), z.stride(0),
        NORM=norm is not None, STATS=found is not None, BM=bm, BK=bk, BC=64,
        num_warps=8, num_stages=3,
    )  # fmt: skip
    if part is not None and found is not None:
        merge_tile_moments(part, found, m, step)


@triton.jit(do_not_specialize=COUNTS)
def conv3_grad_kernel(
    dz, x, norm, w, d, to, of_sums, M, c, K, H, W, s_x, s_k, s_c, s_tap, s_d, s_to,
    TO: tl.constexpr, ADD: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The gradient of BM rows and BC channels of x, with mask and sums; dz [M, K] has no gaps."""
    tile = tl.program_id(0)
    rows = tile * BM + tl.arange(0, BM)
    ch = tl.program_id(1) * BC + tl.arange(0, BC)
    live = ch < c
    good = rows < M
    px = rows % W
    py = rows // W % H
    acc = tl.zeros([BM, BC], tl.float32)
    parts = tl.cdiv(K, BK)
    for step in range(0, 9 * parts):
        tap = step // parts
        ks = step % parts * BK + tl.arange(0, BK)
        dy = 1 - tap // 3
        dx = 1 - tap % 3
        there = good & (py + dy >= 0) & (py + dy < H) & (px + dx >= 0) & (px + dx < W)
        some = ks < K
        g = load_rows(dz, rows + dy * W + dx, ks, K, there[:, None] & some[None, :])
        at = w + ks[:, None] * s_k + ch[None, :] * s_c + tap * s_tap
        wt = tl.load(at, mask=some[:, None] & live[None, :], other=0.0)
        acc = tl.dot(g, wt, acc, input_precision="ieee")
    mean = load_vector(norm, ch, live)
    scale = load_vector(norm + c, ch, live)
    shift = load_vector(norm + 2 * c, ch, live)
    mask = good[:, None] & live[None, :]
    v = load_rows(x, rows, ch, s_x, mask)
    g = tl.where(normed(v, mean, scale, shift) <= 0, 0.0, acc)
    if ADD:
        before = load_rows(d, rows, ch, s_d, mask).to(tl.float32)
        store_rows(to, rows, ch, s_to, mask, before + g * scale)
    elif TO:
        store_rows(to, rows, ch, s_to, mask, g)
    at = of_sums + tile.to(tl.int64) * 2 * c + ch
    tl.store(at, tl.sum(g, 0), mask=live)
    tl.store(at + c, tl.sum(tl.where(mask, g * (v.to(tl.float32) - mean), 0.0), 0), mask=live)


@triton.jit(do_not_specialize=COUNTS)
def conv3_weight_kernel(
    dz, x, norm, of_weight, M, c, K, H, W, s_x, tiles,
    BM: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """What `tiles` tiles of rows add to the weight's gradient: 3 taps of one row offset of
    of_weight [programs, 9, c, K].
    """
    dy = tl.program_id(1) - 1
    ch = tl.program_id(2) // tl.cdiv(K, BK) * BC + tl.arange(0, BC)
    ks = tl.program_id(2) % tl.cdiv(K, BK) * BK + tl.arange(0, BK)
    live = ch < c
    some = ks < K
    mean = load_vector(norm, ch, live)
    scale = load_vector(norm + c, ch, live)
    shift = load_vector(norm + 2 * c, ch, live)
    left = tl.zeros([BC, BK], tl.float32)
    here = tl.zeros([BC, BK], tl.float32)
    right = tl.zeros([BC, BK], tl.float32)
    for i in range(0, tiles):
        rows = (tl.program_id(0) * tiles + i) * BM + tl.arange(0, BM)
        px = rows % W
        oy = rows // W % H - dy
        good = rows < M
        mask = good[:, None] & live[None, :]
        v = load_rows(x, rows, ch, s_x, mask)
        a = tl.trans(tl.where(mask, relu(normed(v, mean, scale, shift)), 0.0).to(v.dtype))
        there = good & (oy >= 0) & (oy < H)
        behind = rows - dy * W
        g = load_rows(dz, behind + 1, ks, K, (there & (px < W - 1))[:, None] & some[None, :])
        left = tl.dot(a, g, left, input_precision="ieee")
        g = load_rows(dz, behind, ks, K, there[:, None] & some[None, :])
        here = tl.dot(a, g, here, input_precision="ieee")
        g = load_rows(dz, behind - 1, ks, K, (there & (px > 0))[:, None] & some[None, :])
        right = tl.dot(a, g, right, input_precision="ieee")
    own = of_weight + (tl.program_id(0) * 9 + (dy + 1) * 3).to(tl.int64) * c * K
    mask = live[:, None] & some[None, :]
    store_rows(own, ch, ks, K, mask, left)
    store_rows(own + c * K, ch, ks, K, mask, here)
    store_rows(own + 2 * c * K, ch, ks, K, mask, right)


def conv3_backward(
    dz: Tensor,
    x: Tensor,
    norm: Tensor,
    weight: Tensor,
    size: Size,
    grads: NormGrads | None,
    grad: Tensor | None,
    d: Tensor | None,
    to: Tensor | None,
) -> None:
    """What plain.norm_relu_conv_backward says, of dz [M, K] without gaps."""
    of_sums = None if grads is None else _gradient(dz, x, norm, weight, size, d, to)
    of_weight = None if grad is None else _of_weight(dz, x, norm, size)
    strides = (0, 0, 0) if grad is None else _strides(grad)
    merge_parts(norm, of_sums, grads, of_weight, grad, strides)


def _gradient(
    dz: Tensor,
    x: Tensor,
    norm: Tensor,
    weight: Tensor,
    size: Size,
    d: Tensor | None,
    to: Tensor | None,
) -> Tensor:
    (m, c), k, wide = x.shape, weight.shape[0], x.dtype == torch.float32
    bm, most, warps, stages = (64, 64, 4, 2) if wide else (128, 128, 8, 4)
    tiles, bc = triton.cdiv(m, bm), at_least_16(c, most)
    of_sums = x.new_empty(tiles, 2, c, dtype=torch.float32)
    conv3_grad_kernel[(tiles, triton.cdiv(c, bc))](
        dz, x, norm, weight, d, to, of_sums, m, c, k, *size, x.stride(0), *_strides(weight),
        0 if d is None else d.stride(0), 0 if to is None else to.stride(0),
        TO=to is not None, ADD=d is not None, BM=bm, BC=bc, BK=at_least_16(k, 32),
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return of_sums


def _of_weight(dz: Tensor, x: Tensor, norm: Tensor, size: Size) -> Tensor:
    """[programs, 9, c, K]."""
    (m, c), k, wide = x.shape, dz.shape[1], x.dtype == torch.float32
    bm, most, warps, stages = (32, 64, 4, 1) if wide else (64, 128, 8, 3)
    bc, bk = at_least_16(c, most), at_least_16(k, 64)
    beside = triton.cdiv(c, bc) * triton.cdiv(k, bk)
    tiles, programs = deal_out(x, bm, 3 * beside, waves=2, least=8)
    of_weight = x.new_empty(programs, 9, c, k, dtype=torch.float32)
    conv3_weight_kernel[(programs, 3, beside)](
        dz, x, norm, of_weight, m, c, k, *size, x.stride(0), tiles,
        BM=bm, BC=bc, BK=bk, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return of_weight


def _strides(weight: Tensor) -> tuple[int, int, int]:
    """How far apart two of [k, c, 3, 3]'s k, c and taps are."""
    return weight.stride(0), weight.stride(1), weight.stride(3)
