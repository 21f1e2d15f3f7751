"""Normalisation on an NVIDIA GPU: uint8 in any layout to float32, one pass. Not yet run on a GPU.

N images, C channels, H height, W width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

OF_A_PROGRAM = 1024  # values per program


@triton.jit(do_not_specialize=["count", "H", "W"])
def normalize_kernel(
    x, mean, std, out, count, C, H, W, s_n, s_c, s_h, s_w, s_mean, s_std,
    LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """In the order of out, [N, H, W, C] or [N, C, H, W]; divisions round as in IEEE 754."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = i < count
    if LAST:
        c = i % C
        w = i // C % W
        h = i // C // W % H
    else:
        w = i % W
        h = i // W % H
        c = i // W // H % C
    n = i // C // W // H
    pixel = tl.load(x + n * s_n + c * s_c + h * s_h + w * s_w, mask=live, other=0).to(tl.float32)
    share = tl.div_rn(pixel, 255.0) - tl.load(mean + c * s_mean, mask=live, other=0.0)
    value = tl.div_rn(share, tl.load(std + c * s_std, mask=live, other=1.0))
    tl.store(out + i, value, mask=live)


def normalize(x: Tensor, mean: Tensor, std: Tensor, memory_format: torch.memory_format) -> Tensor:
    """uint8 [N, C, H, W] -> (x / 255 - mean) / std, bit for bit as on a CPU; mean and std are
    [1, C, 1, 1], or one value each."""
    c, h, w = x.shape[1:]
    out = torch.empty(x.shape, device=x.device, memory_format=memory_format)
    if out.numel():
        with torch.cuda.device_of(x):
            normalize_kernel[(triton.cdiv(out.numel(), OF_A_PROGRAM),)](
                x, mean, std, out, out.numel(), c, h, w, *x.stride(),
                int(mean.numel() > 1), int(std.numel() > 1),
                LAST=memory_format == torch.channels_last, BLOCK=OF_A_PROGRAM, num_warps=4,
            )  # fmt: skip
    return out
