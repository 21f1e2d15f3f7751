"""Sums over rows: moments, the sums of BatchNorm's backward, and vectors made of them.

Programs write what their rows come to, in float32; a second kernel adds that up, in float64 and in
a fixed order. There are no atomics: results depend on the inputs and on the number of the GPU's
processors alone.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from densekit.ops.lean.kernels.gpu.rows import pool_arguments
from densekit.ops.lean.kernels.gpu.tiles import (
    COUNTS,
    before_pool,
    deal_out,
    load_rows,
    load_vector,
    normed,
    store_rows,
)
from densekit.ops.lean.kernels.plain import NormGrads, Pool

# Vectors of channels ------------------------------------------------------------------------


@triton.jit(do_not_specialize=COUNTS)
def normalisation_kernel(moments, count, gamma, beta, eps, norm, c, s_moments, BLOCK: tl.constexpr):
    ch = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = ch < c
    mean = tl.load(moments + ch, mask=live, other=0.0)
    variance = tl.load(moments + s_moments + ch, mask=live, other=1.0) / tl.load(count)
    rstd = 1.0 / tl.sqrt(variance + eps)
    scale = tl.load(gamma + ch, mask=live, other=0.0).to(tl.float64) * rstd
    shift = tl.load(beta + ch, mask=live, other=0.0)
    tl.store(norm + ch, mean.to(tl.float32), mask=live)
    tl.store(norm + c + ch, scale.to(tl.float32), mask=live)
    tl.store(norm + 2 * c + ch, shift.to(tl.float32), mask=live)
    tl.store(norm + 3 * c + ch, rstd.to(tl.float32), mask=live)


def normalisation(
    moments: Tensor, count: Tensor, gamma: Tensor, beta: Tensor, eps: float, norm: Tensor
) -> None:
    c = norm.shape[1]
    normalisation_kernel[(triton.cdiv(c, 128),)](
        moments, count, gamma, beta, eps, norm, c, moments.stride(0), BLOCK=128, num_warps=4
    )


@triton.jit
def add_correction(norm, first, second, count, line, c, s_line, ch, live):
    scale = tl.load(norm + c + ch, mask=live, other=0.0).to(tl.float64)
    rstd = tl.load(norm + 3 * c + ch, mask=live, other=0.0).to(tl.float64)
    n = tl.load(count)
    shift = tl.load(line + ch, mask=live, other=0.0) - first * scale / n
    slope = tl.load(line + s_line + ch, mask=live, other=0.0) - second * scale * rstd * rstd / n
    tl.store(line + ch, shift, mask=live)
    tl.store(line + s_line + ch, slope, mask=live)


@triton.jit(do_not_specialize=COUNTS)
def correction_kernel(norm, sums, count, line, c, s_sums, s_line, BLOCK: tl.constexpr):
    ch = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = ch < c
    first = tl.load(sums + ch, mask=live, other=0.0)
    second = tl.load(sums + s_sums + ch, mask=live, other=0.0)
    add_correction(norm, first, second, count, line, c, s_line, ch, live)


def correction(norm: Tensor, sums: Tensor, count: Tensor, line: Tensor) -> None:
    c = norm.shape[1]
    strides = sums.stride(0), line.stride(0)
    grid = (triton.cdiv(c, 128),)
    correction_kernel[grid](norm, sums, count, line, c, *strides, BLOCK=128, num_warps=4)


# Moments ------------------------------------------------------------------------------------


@triton.jit
def store_tile_moments(z, good, count, part, tile, cols, K):
    """Writes a tile's means, and sums of squares about them, to part [tiles, 2, K]."""
    z = tl.where(good[:, None], z, 0.0)
    mean = tl.sum(z, 0) / count
    off = tl.where(good[:, None], z - mean[None, :], 0.0)
    at = part + tile.to(tl.int64) * (2 * K) + cols
    tl.store(at, mean, mask=cols < K)
    tl.store(at + K, tl.sum(off * off, 0), mask=cols < K)


@triton.jit(do_not_specialize=COUNTS)
def moments_kernel(
    z, copy, part, M, c, s_z, s_copy, tiles,
    COPY: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Each of BM slots goes over its rows as Welford does; then they are merged, as Chan et al.,
    about the first slot's mean.
    """
    ch = tl.program_id(1) * BC + tl.arange(0, BC)
    live = ch < c
    mean = tl.zeros([BM, BC], tl.float32)
    squares = tl.zeros([BM, BC], tl.float32)
    count = tl.zeros([BM], tl.float32)
    for i in range(0, tiles):
        rows = (tl.program_id(0) * tiles + i) * BM + tl.arange(0, BM)
        mask = (rows < M)[:, None] & live[None, :]
        v = load_rows(z, rows, ch, s_z, mask)
        if COPY:
            store_rows(copy, rows, ch, s_copy, mask, v)
        off = tl.where(mask, v.to(tl.float32) - mean, 0.0)
        mean += off * (1.0 / (i + 1))
        squares += tl.where(mask, off * (v.to(tl.float32) - mean), 0.0)
        count += (rows < M).to(tl.float32)
    about = tl.sum(tl.where(tl.arange(0, BM)[:, None] == 0, mean, 0.0), 0)
    off = tl.where(count[:, None] > 0, mean - about[None, :], 0.0)
    shift = tl.sum(count[:, None] * off, 0) / tl.sum(count, 0)
    off -= shift[None, :]
    second = tl.sum(squares + count[:, None] * off * off, 0)
    at = part + tl.program_id(0) * 2 * c + ch
    tl.store(at, about.to(tl.float64) + shift.to(tl.float64), mask=live)
    tl.store(at + c, second.to(tl.float64), mask=live)


@triton.jit(do_not_specialize=COUNTS)
def merge_moments_kernel(
    part, found, tiles, M, step, c, s_found, BT: tl.constexpr, BC: tl.constexpr
):
    """Of tiles of `step` rows, part [tiles, 2, c]; about the first tile's mean."""
    ch = tl.program_id(0) * BC + tl.arange(0, BC)
    live = ch < c
    about = tl.load(part + ch, mask=live, other=0.0).to(tl.float64)
    first = tl.zeros([BT, BC], tl.float64)
    second = tl.zeros([BT, BC], tl.float64)
    for start in range(0, tiles, BT):
        t = start + tl.arange(0, BT)
        mask = (t < tiles)[:, None] & live[None, :]
        count = tl.minimum(M - t * step, step)[:, None].to(tl.float64)
        off = load_rows(part, t, ch, 2 * c, mask).to(tl.float64) - about[None, :]
        off = tl.where(mask, off, 0.0)
        squares = load_rows(part + c, t, ch, 2 * c, mask).to(tl.float64)
        first += tl.where(mask, count * off, 0.0)
        second += tl.where(mask, count * off * off + squares, 0.0)
    off = tl.sum(first, 0) / M
    tl.store(found + ch, about + off, mask=live)
    tl.store(found + s_found + ch, tl.sum(second, 0) - off * off * M, mask=live)


def merge_tile_moments(part: Tensor, found: Tensor, m: int, step: int) -> None:
    c = found.shape[1]
    merge_moments_kernel[(triton.cdiv(c, 8),)](
        part, found, len(part), m, step, c, found.stride(0), BT=128, BC=8, num_warps=4
    )


def moments(z: Tensor, found: Tensor, copy: Tensor | None = None) -> None:
    (m, c), bm = z.shape, 64
    bc = 64 if c > 32 else 32
    tiles, programs = deal_out(z, bm, triton.cdiv(c, bc), waves=8, least=1)
    part = torch.empty(programs, 2, c, dtype=torch.float64, device=z.device)
    moments_kernel[(programs, triton.cdiv(c, bc))](
        z, copy, part, m, c, z.stride(0), 0 if copy is None else copy.stride(0), tiles,
        COPY=copy is not None, BM=bm, BC=bc, num_warps=4,
    )  # fmt: skip
    merge_tile_moments(part, found, m, tiles * bm)


# Gradients ----------------------------------------------------------------------------------


@triton.jit
def sum_parts(part, S, n, i, BS: tl.constexpr, BN: tl.constexpr):
    """Columns i of part [S, n], added up in float64."""
    total = tl.zeros([BS, BN], tl.float64)
    for start in range(0, S, BS):
        at = start + tl.arange(0, BS)
        mask = (at < S)[:, None] & (i < n)[None, :]
        total += load_rows(part, at, i, n, mask).to(tl.float64)
    return tl.sum(total, 0)


@triton.jit(do_not_specialize=COUNTS)
def merge_kernel(
    of_weight, S_weight, n, weight, Q, P, s_q, s_p, s_t, weight_programs,
    of_sums, S_sums, c, sums, norm, gamma, beta, count, line, s_sums, s_line,
    WEIGHT: tl.constexpr, SUMS: tl.constexpr, LINE: tl.constexpr,
    BS: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """of_weight [S, T, P, Q] to the weight's gradient, whose q, p and t stand s_q, s_p, s_t apart;
    of_sums [S, 2, c] to sums, and to all that plain.finish_grads makes of them.
    """
    i = tl.program_id(0) * BN + tl.arange(0, BN)
    if WEIGHT:
        if tl.program_id(0) < weight_programs:
            total = sum_parts(of_weight, S_weight, n, i, BS, BN)
            at = i % Q * s_q + i // Q % P * s_p + i // Q // P * s_t
            tl.store(weight + at, total.to(weight.dtype.element_ty), mask=i < n)
    if SUMS:
        if tl.program_id(0) >= weight_programs:
            ch = i - weight_programs * BN
            live = ch < c
            first = sum_parts(of_sums, S_sums, 2 * c, ch, BS, BN)
            second = sum_parts(of_sums, S_sums, 2 * c, c + ch, BS, BN)
            tl.store(sums + ch, first, mask=live)
            tl.store(sums + s_sums + ch, second, mask=live)
            rstd = tl.load(norm + 3 * c + ch, mask=live, other=0.0).to(tl.float64)
            tl.store(gamma + ch, (second * rstd).to(gamma.dtype.element_ty), mask=live)
            tl.store(beta + ch, first.to(beta.dtype.element_ty), mask=live)
            if LINE:
                add_correction(norm, first, second, count, line, c, s_line, ch, live)


def merge_parts(
    norm: Tensor,
    of_sums: Tensor | None,
    grads: NormGrads | None,
    of_weight: Tensor | None = None,
    weight: Tensor | None = None,
    strides: tuple[int, int, int] = (0, 0, 0),
) -> None:
    """Parts of the sums [S, 2, c], of the weight's gradient [S, T, P, Q], or of both; `strides` are
    those of its q, p and t.
    """
    c, n, q, p, bs, bn = norm.shape[1], 0, 1, 1, 32, 32
    if of_weight is not None:
        n, p, q = of_weight[0].numel(), *of_weight.shape[-2:]
    sums, gamma, beta, count, line = grads if grads is not None else (None,) * 5
    weight_programs = triton.cdiv(n, bn)
    programs = weight_programs + (0 if grads is None else triton.cdiv(c, bn))
    merge_kernel[(programs,)](
        of_weight, 0 if of_weight is None else len(of_weight), n, weight, q, p, *strides,
        weight_programs, of_sums, 0 if of_sums is None else len(of_sums), c, sums, norm, gamma,
        beta, count, line, 0 if sums is None else sums.stride(0),
        0 if line is None else line.stride(0), WEIGHT=weight is not None, SUMS=sums is not None,
        LINE=line is not None, BS=bs, BN=bn, num_warps=4,
    )  # fmt: skip


@triton.jit(do_not_specialize=COUNTS)
def grad_sums_kernel(
    x, norm, da, taken, to, part, M, c, s_x, s_da, s_to, H, W, tiles,
    POOL: tl.constexpr, TO: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    ch = tl.program_id(1) * BC + tl.arange(0, BC)
    live = ch < c
    mean = load_vector(norm, ch, live)
    scale = load_vector(norm + c, ch, live)
    shift = load_vector(norm + 2 * c, ch, live)
    first = tl.zeros([BM, BC], tl.float32)
    second = tl.zeros([BM, BC], tl.float32)
    for i in range(0, tiles):
        rows = (tl.program_id(0) * tiles + i) * BM + tl.arange(0, BM)
        mask = (rows < M)[:, None] & live[None, :]
        v = load_rows(x, rows, ch, s_x, mask)
        g = before_pool(da, taken, rows, ch, mask, s_da, c, H, W, POOL)
        g = tl.where(normed(v, mean, scale, shift) <= 0, 0.0, g)
        if TO:
            store_rows(to, rows, ch, s_to, mask, g)
        first += g
        second += tl.where(mask, g * (v.to(tl.float32) - mean), 0.0)
    at = part + tl.program_id(0) * 2 * c + ch
    tl.store(at, tl.sum(first, 0), mask=live)
    tl.store(at + c, tl.sum(second, 0), mask=live)


def grad_sums(
    x: Tensor,
    norm: Tensor,
    da: Tensor,
    grads: NormGrads,
    pool: Pool | None = None,
    to: Tensor | None = None,
    of_weight: Tensor | None = None,
    weight: Tensor | None = None,
    strides: tuple[int, int, int] = (0, 0, 0),
) -> None:
    """`to`, if there is one, becomes g; a weight's gradient is merged as merge_parts does."""
    (m, c), bm = x.shape, 32
    bc = 64 if c > 32 else 32
    kind, taken, h, w = pool_arguments(pool)
    tiles, programs = deal_out(x, bm, triton.cdiv(c, bc), waves=8, least=1)
    part = torch.empty(programs, 2, c, dtype=torch.float32, device=x.device)
    grad_sums_kernel[(programs, triton.cdiv(c, bc))](
        x, norm, da, taken, to, part, m, c, x.stride(0), da.stride(0),
        0 if to is None else to.stride(0), h, w, tiles, POOL=kind, TO=to is not None,
        BM=bm, BC=bc, num_warps=4,
    )  # fmt: skip
    merge_parts(norm, part, grads, of_weight, weight, strides)
