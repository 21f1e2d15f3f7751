"""Memory layout: feature maps [N, C, H, W] in channels_last, seen as pixels by channels.

"Rows" are that matrix, [N*H*W, C]: what the kernels work on.
"""

from __future__ import annotations

import torch
from torch import Tensor


def in_compute_format(x: Tensor) -> Tensor:
    """x in channels_last, and in autocast's dtype if autocast is on."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
    return x.contiguous(memory_format=torch.channels_last)


def as_rows(x: Tensor) -> Tensor:
    """[N, C, H, W] in channels_last -> [N*H*W, C], without a copy."""
    n, c, h, w = x.shape
    return x.permute(0, 2, 3, 1).reshape(n * h * w, c)


def as_maps(rows: Tensor, h: int, w: int) -> Tensor:
    """[N*H*W, C] -> [N, C, H, W] in channels_last, without a copy."""
    n, c = rows.shape[0] // (h * w), rows.shape[1]
    return rows.view(n, h, w, c).permute(0, 3, 1, 2)


def apply_dropout_mask(z: Tensor, kept: Tensor, drop_rate: float) -> Tensor:
    """Dropout, and its backward: zero where `kept` is False, scaled elsewhere."""
    return z * kept * (1 / (1 - drop_rate))


def contiguous_weight(weight: Tensor) -> Tensor:
    """`weight` if it is contiguous in either memory format, else a contiguous copy."""
    formats = (torch.contiguous_format, torch.channels_last)
    if any(weight.is_contiguous(memory_format=each) for each in formats):
        return weight
    return weight.contiguous()
