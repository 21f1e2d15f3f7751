"""norm, relu and the 1x1 convolution behind them: one pass over memory, forward and backward."""

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
from densekit.ops.lean.kernels.plain import NormGrads

LARGEST_K = 256  # whose column of a weight's gradient fits into registers


@triton.jit(do_not_specialize=COUNTS)
def conv1_kernel(
    x, norm, w, shift_z, z, part, M, c, K, s_x, s_z,
    NORM: tl.constexpr, SHIFT: tl.constexpr, STATS: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """z [BM, BK] of relu(norm(x)) [M, c], or of x itself, times w [K, c] transposed; with SHIFT,
    relu of that and shift_z [K].
    """
    tile = tl.program_id(0)
    rows = tile * BM + tl.arange(0, BM)
    ks = tl.program_id(1) * BK + tl.arange(0, BK)
    good = rows < M
    acc = tl.zeros([BM, BK], tl.float32)
    for start in range(0, c, BC):
        ch = start + tl.arange(0, BC)
        live = ch < c
        v = load_rows(x, rows, ch, s_x, good[:, None] & live[None, :])
        wt = tl.load(
            w + ks[None, :] * c + ch[:, None], mask=live[:, None] & (ks < K)[None, :], other=0.0
        )
        if NORM:
            mean = load_vector(norm, ch, live)
            scale = load_vector(norm + c, ch, live)
            shift = load_vector(norm + 2 * c, ch, live)
            v = relu(normed(v, mean, scale, shift)).to(v.dtype)
        acc = tl.dot(v, wt, acc, input_precision="ieee")
    if SHIFT:
        acc = relu(acc + load_vector(shift_z, ks, ks < K))
    out = acc.to(z.dtype.element_ty)
    store_rows(z, rows, ks, s_z, good[:, None] & (ks < K)[None, :], out)
    if STATS:
        count = tl.minimum(M - tile * BM, BM).to(tl.float32)
        store_tile_moments(out.to(tl.float32), good, count, part, tile, ks, K)


def conv1_forward(
    x: Tensor,
    norm: Tensor | None,
    weight: Tensor,
    z: Tensor,
    found: Tensor | None = None,
    shift: Tensor | None = None,
) -> None:
    """z becomes weight times relu(norm(x)), or times x; with a shift, relu of that and the shift.
    `found` becomes z's moments."""
    (m, c), k, wide = x.shape, weight.shape[0], x.dtype == torch.float32
    bm, bc, warps, stages = (64, 32, 4, 2) if wide else (128, 64, 8, 3)
    bk, tiles = at_least_16(k, 128), triton.cdiv(m, bm)
    part = None if found is None else x.new_empty(tiles, 2, k, dtype=torch.float32)
    conv1_kernel[(tiles, triton.cdiv(k, bk))](
        x, norm, weight, shift, z, part, m, c, k, x.stride(0), z.stride(0),
        NORM=norm is not None, SHIFT=shift is not None, STATS=found is not None,
        BM=bm, BK=bk, BC=bc, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    if part is not None and found is not None:
        merge_tile_moments(part, found, m, bm)


@triton.jit(do_not_specialize=COUNTS)
def conv1_backward_kernel(
    dz, x, norm, w, d, to, of_sums, of_weight, M, c, K, s_x, s_d, s_to, tiles,
    SUMS: tl.constexpr, TO: tl.constexpr, ADD: tl.constexpr, GRAD: tl.constexpr,
    BM: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """BC channels of x, `tiles` tiles of rows: gradient, mask, sums and the weight's gradient.

    dz [M, K] has no gaps. Programs of the same rows stand side by side, so that a tile of dz is
    read from memory once, and by the others from the GPU's cache.
    """
    ch = tl.program_id(0) * BC + tl.arange(0, BC)
    ks = tl.arange(0, BK)
    live = ch < c
    w_mask = (ks < K)[:, None] & live[None, :]
    wt = load_rows(w, ks, ch, c, w_mask)
    mean = load_vector(norm, ch, live)
    scale = load_vector(norm + c, ch, live)
    shift = load_vector(norm + 2 * c, ch, live)
    gw = tl.zeros([BK, BC], tl.float32)
    first = tl.zeros([BM, BC], tl.float32)
    second = tl.zeros([BM, BC], tl.float32)
    for i in range(0, tiles):
        rows = (tl.program_id(1) * tiles + i) * BM + tl.arange(0, BM)
        good = rows < M
        mask = good[:, None] & live[None, :]
        behind = load_rows(dz, rows, ks, K, good[:, None] & (ks < K)[None, :])
        v = load_rows(x, rows, ch, s_x, mask)
        n = normed(v, mean, scale, shift)
        if SUMS:
            g = tl.where(n <= 0, 0.0, tl.dot(behind, wt, input_precision="ieee"))
            first += g
            second += tl.where(mask, g * (v.to(tl.float32) - mean), 0.0)
            if ADD:
                before = load_rows(d, rows, ch, s_d, mask).to(tl.float32)
                store_rows(to, rows, ch, s_to, mask, before + g * scale)
            elif TO:
                store_rows(to, rows, ch, s_to, mask, g)
        if GRAD:
            a = tl.where(mask, relu(n), 0.0).to(v.dtype)
            gw = tl.dot(tl.trans(behind), a, gw, input_precision="ieee")
    if GRAD:
        own = of_weight + tl.program_id(1).to(tl.int64) * K * c
        store_rows(own, ks, ch, c, w_mask, gw)
    if SUMS:
        own = of_sums + tl.program_id(1) * 2 * c + ch
        tl.store(own, tl.sum(first, 0), mask=live)
        tl.store(own + c, tl.sum(second, 0), mask=live)


def conv1_backward(
    dz: Tensor,
    x: Tensor,
    norm: Tensor,
    weight: Tensor,
    grads: NormGrads | None,
    grad: Tensor | None,
    d: Tensor | None,
    to: Tensor | None,
) -> None:
    """What plain.norm_relu_conv_backward says, of dz [M, K] without gaps, K <= LARGEST_K."""
    (m, c), k, wide = x.shape, weight.shape[0], x.dtype == torch.float32
    # float32 is multiplied in registers, which larger tiles would spill
    bm, bc, warps, stages = (16, 32, 8, 1) if wide else (64, 64, 8, 3)
    chunks = triton.cdiv(c, bc)
    tiles, programs = deal_out(x, bm, chunks, waves=2, least=4)
    of_sums = None if grads is None else x.new_empty(programs, 2, c, dtype=torch.float32)
    of_weight = None if grad is None else x.new_empty(programs, 1, k, c, dtype=torch.float32)
    conv1_backward_kernel[(chunks, programs)](
        dz, x, norm, weight, d, to, of_sums, of_weight, m, c, k, x.stride(0),
        0 if d is None else d.stride(0), 0 if to is None else to.stride(0), tiles,
        SUMS=grads is not None, TO=to is not None, ADD=d is not None, GRAD=grad is not None,
        BM=bm, BC=bc, BK=at_least_16(k, LARGEST_K), num_warps=warps, num_stages=stages,
    )  # fmt: skip
    strides = (0, 0, 0) if grad is None else (grad.stride(1), grad.stride(0), 0)
    merge_parts(norm, of_sums, grads, of_weight, grad, strides)
