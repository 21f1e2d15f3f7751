"""Maps as rows: pixels by channels, and a few images at a time."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 2 << 20  # bytes of the widest output per thread


def as_computed(x: Tensor) -> Tensor:
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


class WorkSpace:
    """One piece of memory for arrays that are never needed at the same time.

    Layers read ever more channels: fresh arrays would each find no hole that is large enough.
    """

    def __init__(self, like: Tensor, chunks: list[slice], width: int) -> None:
        self._memory = like.new_empty(max(c.stop - c.start for c in chunks) * width)

    def rows(self, like: Tensor) -> Tensor:
        """Like `like`, contiguous; it ends the use of the one before."""
        return self._memory[: like.numel()].view(like.shape)


def chunks_of(
    shape: torch.Size, width: int, dtype: torch.dtype, device: torch.device
) -> list[slice]:
    """Rows of whole images that are worked on at once; see CHUNK. All of them on a GPU."""
    n, _, h, w = shape
    images = n
    if device.type == "cpu":
        image = h * w * width * dtype.itemsize
        images = max(1, CHUNK * torch.get_num_threads() // image)
        images = -(-n // -(-n // images)) if n else 0  # as even as can be
    starts = range(0, n, max(1, images)) if n else [0]
    return [slice(i * h * w, min(n, i + images) * h * w) for i in starts]


def as_weight(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.to(dtype).contiguous(memory_format=torch.channels_last)


def dropped(z: Tensor, kept: Tensor, drop_rate: float) -> Tensor:
    return z * kept * (1 / (1 - drop_rate))
