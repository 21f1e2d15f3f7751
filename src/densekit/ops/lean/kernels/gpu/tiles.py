"""What the kernels do with a tile in registers, and how rows are dealt out to programs.

A tile is BM rows by BC channels, in float32. `rows`, `ch` are its indices, `mask` what of it is
there. Rows of x stand s_x apart; a norm is [4, c] without gaps, float32.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

COUNTS = (
    "M",
    "R",
    "H",
    "W",
    "tiles",
    "step",
    "n",
    "P",
    "Q",
    "S_weight",
    "S_sums",
    "weight_programs",
)
"""Arguments of kernels for whose values Triton compiles nothing of its own, as it does for strides
and widths: where these are multiples of 16 it loads several values at once."""
INTERPRETED_PROCESSORS = 4  # so that Triton's interpreter, too, splits rows among programs


@triton.jit
def load_rows(x, rows, ch, s_x, mask):
    return tl.load(x + rows.to(tl.int64)[:, None] * s_x + ch[None, :], mask=mask, other=0.0)


@triton.jit
def store_rows(x, rows, ch, s_x, mask, values):
    at = x + rows.to(tl.int64)[:, None] * s_x + ch[None, :]
    tl.store(at, values.to(x.dtype.element_ty), mask=mask)


@triton.jit
def load_vector(vector, ch, live):
    """Of channels, [1, BC] in float32."""
    return tl.load(vector + ch, mask=live, other=0.0).to(tl.float32)[None, :]


@triton.jit
def normed(x, mean, scale, shift):
    return (x.to(tl.float32) - mean) * scale + shift


@triton.jit
def relu(x):
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)  # as in torch


@triton.jit
def sloping(x, mean, slope):
    """0 where the slope is 0: in evaluation mode a NaN pixel adds nothing."""
    return tl.where(slope == 0, 0.0, (x.to(tl.float32) - mean) * slope)


@triton.jit
def before_pool(da, taken, rows, ch, mask, s_da, c, H, W, POOL: tl.constexpr):
    """The gradient of rows before a pool: POOL 0 is none, 1 2x2 averages, 2 3x3 maxima."""
    if POOL == 0:
        g = load_rows(da, rows, ch, s_da, mask).to(tl.float32)
    elif POOL == 1:
        x = rows % W // 2
        y = rows // W % H // 2
        inside = (y < H // 2) & (x < W // 2)  # an odd last row or column is in no window
        at = (rows // (W * H) * (H // 2) + y) * (W // 2) + x
        g = load_rows(da, at, ch, s_da, mask & inside[:, None]).to(tl.float32) * 0.25
    else:
        x = rows % W
        y = rows // W % H
        h = (H + 1) // 2
        w = (W + 1) // 2
        g = tl.zeros(mask.shape, tl.float32)
        for i in tl.static_range(2):  # an odd row or column is in two windows
            for j in tl.static_range(2):
                oy = y // 2 + i
                ox = x // 2 + j
                inside = (oy < h) & (ox < w) & ((i == 0) | (y % 2 == 1)) & ((j == 0) | (x % 2 == 1))
                place = ((y - 2 * oy + 1) * 3 + x - 2 * ox + 1)[:, None]
                at = (rows // (W * H) * h + oy) * w + ox
                there = mask & inside[:, None]
                own = load_rows(taken, at, ch, c, there).to(tl.int32) == place
                g += tl.where(own, load_rows(da, at, ch, s_da, there).to(tl.float32), 0.0)
    return g


@functools.cache
def processors(device: torch.device) -> int:
    if device.type != "cuda":
        return INTERPRETED_PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


def deal_out(x: Tensor, bm: int, beside: int, waves: int, least: int) -> tuple[int, int]:
    """Tiles of bm rows that a program takes, at least `least`, and how many programs that makes:
    with `beside` times as many, about `waves` for each of the GPU's processors.
    """
    tiles = triton.cdiv(len(x), bm)
    each = max(least, triton.cdiv(tiles * beside, processors(x.device) * waves))
    return each, triton.cdiv(tiles, each)


def at_least_16(n: int, most: int) -> int:
    """The power of two from n on, as far as tensor cores' products and `most` allow."""
    return min(most, max(16, triton.next_power_of_2(n)))
