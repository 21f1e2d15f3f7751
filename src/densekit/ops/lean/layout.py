"""Maps as rows: pixels by channels."""

from __future__ import annotations

import torch
from torch import Tensor


def in_compute_format(x: Tensor) -> Tensor:
    """In channels_last, and in autocast's format where that is on."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
    return x.contiguous(memory_format=torch.channels_last)


def as_rows(x: Tensor) -> Tensor:
    """[N, C, H, W], channels last -> [N*H*W, C], a view."""
    n, c, h, w = x.shape
    return x.permute(0, 2, 3, 1).reshape(n * h * w, c)


def as_maps(rows: Tensor, h: int, w: int) -> Tensor:
    """The inverse."""
    n, c = rows.shape[0] // (h * w), rows.shape[1]
    return rows.view(n, h, w, c).permute(0, 3, 1, 2)


def apply_dropout_mask(z: Tensor, kept: Tensor, drop_rate: float) -> Tensor:
    return z * kept * (1 / (1 - drop_rate))


def contiguous_weight(weight: Tensor) -> Tensor:
    """A convolution's weight whose outputs are outermost, with nothing between its numbers."""
    is_dense = weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last)
    return weight if is_dense else weight.contiguous()
