"""Elementwise passes over rows: what norm and relu, and their backward, do to each value."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from densekit.ops.lean.kernels.gpu.tiles import (
    COUNTS,
    before_pool,
    load_rows,
    load_vector,
    normed,
    relu,
    sloping,
    store_rows,
)
from densekit.ops.lean.kernels.plain import DeferredGrad, Pool, Size


@triton.jit
def norm_relu_tile(x, norm, out, rows, ch, M, c, s_x, s_out):
    live = ch < c
    mask = (rows < M)[:, None] & live[None, :]
    mean = load_vector(norm, ch, live)
    scale = load_vector(norm + c, ch, live)
    shift = load_vector(norm + 2 * c, ch, live)
    a = relu(normed(load_rows(x, rows, ch, s_x, mask), mean, scale, shift))
    store_rows(out, rows, ch, s_out, mask, a)


@triton.jit
def add_line_tile(d, x, mean, line, out, rows, ch, M, c, s_d, s_x, s_line, s_out):
    live = ch < c
    mask = (rows < M)[:, None] & live[None, :]
    slope = load_vector(line + s_line, ch, live)
    rest = sloping(load_rows(x, rows, ch, s_x, mask), load_vector(mean, ch, live), slope)
    result = load_rows(d, rows, ch, s_d, mask).to(tl.float32) + load_vector(line, ch, live) + rest
    store_rows(out, rows, ch, s_out, mask, result)


@triton.jit(do_not_specialize=COUNTS)
def norm_relu_kernel(x, norm, out, M, c, s_x, s_out, BM: tl.constexpr, BC: tl.constexpr):
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    ch = tl.program_id(1) * BC + tl.arange(0, BC)
    norm_relu_tile(x, norm, out, rows, ch, M, c, s_x, s_out)


@triton.jit(do_not_specialize=COUNTS)
def norm_relu_grad_kernel(
    x, norm, da, taken, line, out, M, c, s_x, s_da, s_line, s_out, H, W,
    POOL: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    ch = tl.program_id(1) * BC + tl.arange(0, BC)
    live = ch < c
    mask = (rows < M)[:, None] & live[None, :]
    mean = load_vector(norm, ch, live)
    scale = load_vector(norm + c, ch, live)
    shift = load_vector(norm + 2 * c, ch, live)
    v = load_rows(x, rows, ch, s_x, mask)
    g = before_pool(da, taken, rows, ch, mask, s_da, c, H, W, POOL)
    g = tl.where(normed(v, mean, scale, shift) <= 0, 0.0, g)
    rest = load_vector(line, ch, live) + sloping(v, mean, load_vector(line + s_line, ch, live))
    store_rows(out, rows, ch, s_out, mask, g * scale + rest)


@triton.jit(do_not_specialize=COUNTS)
def add_line_kernel(
    d, x, mean, line, out, M, c, s_d, s_x, s_line, s_out, BM: tl.constexpr, BC: tl.constexpr
):
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    ch = tl.program_id(1) * BC + tl.arange(0, BC)
    add_line_tile(d, x, mean, line, out, rows, ch, M, c, s_d, s_x, s_line, s_out)


@triton.jit(do_not_specialize=COUNTS)
def operands_kernel(
    d, z, mean, line, dz, k, s_d, s_z, s_line, s_dz, x, norm, a, c, s_x, s_a, M,
    BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """What a convolution's backward multiplies: dz of add_line, a of norm_relu."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    chunk = tl.program_id(1)
    parts = tl.cdiv(c, BC)
    if chunk < parts:
        norm_relu_tile(x, norm, a, rows, chunk * BC + tl.arange(0, BC), M, c, s_x, s_a)
    else:
        ch = (chunk - parts) * BC + tl.arange(0, BC)
        add_line_tile(d, z, mean, line, dz, rows, ch, M, k, s_d, s_z, s_line, s_dz)


@triton.jit(do_not_specialize=COUNTS)
def norm_relu_pool_kernel(
    x, norm, out, taken, R, c, s_x, s_out, H, W,
    MAX: tl.constexpr, TAKEN: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """R is the number of rows behind the pool. MAX 0: 2x2 averages, 1: 3x3 maxima."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    ch = tl.program_id(1) * BC + tl.arange(0, BC)
    live = ch < c
    mask = (rows < R)[:, None] & live[None, :]
    mean = load_vector(norm, ch, live)
    scale = load_vector(norm + c, ch, live)
    shift = load_vector(norm + 2 * c, ch, live)
    h = (H + MAX) // 2
    w = (W + MAX) // 2
    image = rows // (w * h)
    result = tl.full([BM, BC], float("-inf") if MAX else 0.0, tl.float32)
    place = tl.zeros([BM, BC], tl.int32)
    for i in tl.static_range(2 + MAX):
        for j in tl.static_range(2 + MAX):
            y = 2 * (rows // w % h) + i - MAX
            x_ = 2 * (rows % w) + j - MAX
            there = mask & ((y >= 0) & (y < H) & (x_ >= 0) & (x_ < W))[:, None]
            v = load_rows(x, (image * H + y) * W + x_, ch, s_x, there)
            v = relu(normed(v, mean, scale, shift))
            v = v.to(out.dtype.element_ty).to(tl.float32)  # as if the map before had been written
            if MAX:
                better = there & ((v > result) | (v != v))  # the last NaN, as in torch
                result = tl.where(better, v, result)
                place = tl.where(better, i * 3 + j, place)
            else:
                result += v * 0.25
    store_rows(out, rows, ch, s_out, mask, result)
    if TAKEN:
        store_rows(taken, rows, ch, c, mask, place)


def norm_relu(x: Tensor, norm: Tensor, out: Tensor) -> None:
    bm, bc, grid = _grid(*x.shape)
    strides = x.stride(0), out.stride(0)
    norm_relu_kernel[grid](x, norm, out, *x.shape, *strides, BM=bm, BC=bc, num_warps=4)


def norm_relu_grad(
    x: Tensor, norm: Tensor, da: Tensor, line: Tensor, out: Tensor, pool: Pool | None = None
) -> None:
    bm, bc, grid = _grid(*x.shape)
    kind, taken, h, w = pool_arguments(pool)
    norm_relu_grad_kernel[grid](
        x, norm, da, taken, line, out, *x.shape, x.stride(0), da.stride(0), line.stride(0),
        out.stride(0), h, w, POOL=kind, BM=bm, BC=bc, num_warps=4,
    )  # fmt: skip


def add_line(behind: DeferredGrad, out: Tensor) -> None:
    d, x, mean, line = behind
    bm, bc, grid = _grid(*x.shape)
    strides = d.stride(0), x.stride(0), line.stride(0), out.stride(0)
    add_line_kernel[grid](d, x, mean, line, out, *x.shape, *strides, BM=bm, BC=bc, num_warps=4)


def operands(behind: DeferredGrad, dz: Tensor, x: Tensor, norm: Tensor, a: Tensor) -> None:
    """add_line to dz and norm_relu to a, in one launch."""
    d, z, mean, line = behind
    (m, c), k = x.shape, z.shape[1]
    bm, bc, (tiles, parts) = _grid(m, c)
    operands_kernel[(tiles, parts + triton.cdiv(k, bc))](
        d, z, mean, line, dz, k, d.stride(0), z.stride(0), line.stride(0), dz.stride(0),
        x, norm, a, c, x.stride(0), a.stride(0), m, BM=bm, BC=bc, num_warps=4,
    )  # fmt: skip


def norm_relu_pool(x: Tensor, norm: Tensor, out: Tensor, pool: Pool) -> None:
    _norm_relu_pool(x, norm, out, pool, maxima=pool.taken is not None)


def norm_relu_max(x: Tensor, norm: Tensor, out: Tensor, size: Size) -> None:
    """norm_relu_pool's 3x3 maxima of maps of that size, without what backward needs."""
    _norm_relu_pool(x, norm, out, Pool(*size), maxima=True)


def _norm_relu_pool(x: Tensor, norm: Tensor, out: Tensor, pool: Pool, maxima: bool) -> None:
    bm, bc, grid = _grid(*out.shape)
    norm_relu_pool_kernel[grid](
        x, norm, out, pool.taken, *out.shape, x.stride(0), out.stride(0), pool.h, pool.w,
        MAX=int(maxima), TAKEN=pool.taken is not None, BM=bm, BC=bc, num_warps=4,
    )  # fmt: skip


@triton.jit(do_not_specialize=COUNTS)
def norm_relu_mean_kernel(x, norm, out, M, c, s_x, BM: tl.constexpr, BC: tl.constexpr):
    """The mean of an image's M rows."""
    image = tl.program_id(0)
    ch = tl.program_id(1) * BC + tl.arange(0, BC)
    live = ch < c
    mean = load_vector(norm, ch, live)
    scale = load_vector(norm + c, ch, live)
    shift = load_vector(norm + 2 * c, ch, live)
    total = tl.zeros([BM, BC], tl.float32)
    for start in range(0, M, BM):
        rows = start + tl.arange(0, BM)
        mask = (rows < M)[:, None] & live[None, :]
        v = load_rows(x, image * M + rows, ch, s_x, mask)
        total += tl.where(mask, relu(normed(v, mean, scale, shift)), 0.0)
    tl.store(out + image.to(tl.int64) * c + ch, tl.sum(total, 0) / M, mask=live)


def norm_relu_mean(x: Tensor, norm: Tensor, out: Tensor) -> None:
    """out [N, c], float32: the mean of relu(norm(x)) over each image's rows, M / N."""
    (m, c), n, bc = x.shape, len(out), 64
    norm_relu_mean_kernel[(n, triton.cdiv(c, bc))](
        x, norm, out, m // n, c, x.stride(0), BM=64, BC=bc, num_warps=4
    )


def pool_arguments(pool: Pool | None) -> tuple[int, Tensor | None, int, int]:
    """before_pool's POOL, taken, H and W."""
    if pool is None:
        return 0, None, 1, 1
    return 1 if pool.taken is None else 2, pool.taken, pool.h, pool.w


def _grid(m: int, c: int) -> tuple[int, int, tuple[int, int]]:
    """Rows and channels of a tile, 4096 values, and how many tiles there are."""
    bm, bc = (32, 128) if c > 64 else (64, 64) if c > 32 else (128, 32)
    return bm, bc, (triton.cdiv(m, bm), triton.cdiv(c, bc))
