"""BatchNorm over the images of all ranks, by a differentiable all-reduce.

It is the reference that lean's is tested against, and runs on CPU and GPU, in float64 too. A rank's
loss is its share of a global sum, so gradients are summed over ranks, not averaged.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from densekit.config import UserError
from densekit.ops.lean.batch_norm import several_ranks, update_running

PIXELS = (0, 2, 3)  # the axes of N, C, H, W that a channel's statistics go over


class SyncBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d whose training statistics are those of all ranks' pixels together.

    Parameters, buffers and evaluation are nn.BatchNorm2d's, and so is all else where there is one
    rank. Every rank must call it equally often; one without images, [0, C, H, W], adds nothing to
    the statistics and gets zeros for gradients.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H, W]. Statistics are summed in float64."""
        if not (self.training and several_ranks()):
            return super().forward(x)
        self._check_input_dim(x)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        pixels = x.shape[0] * x.shape[2] * x.shape[3]
        sums = wide.sum(PIXELS, dtype=torch.float64)
        sums = all_reduce_sum(torch.cat([sums, sums.new_full((1,), pixels)]))
        total, count = sums.split([self.num_features, 1])
        if pixels <= 1 and count <= 1:  # no rank has more, so all stop here
            raise UserError(
                f"BatchNorm needs more than one value per channel over all ranks in training, "
                f"this rank has {list(x.shape)}: use a larger batch or larger images"
            )
        mean = total / count
        centred = wide - _per_channel(mean.to(wide.dtype))
        var = all_reduce_sum(centred.square().sum(PIXELS, dtype=torch.float64)) / count
        if self.track_running_stats:
            unbiased = var * count / (count - 1)
            update_running([self], [mean.detach()], [unbiased.detach()])
        scale = torch.rsqrt(var + self.eps).to(wide.dtype)
        if self.weight is not None:
            scale = scale * self.weight
        y = centred * _per_channel(scale)
        if self.bias is not None:
            y = y + _per_channel(self.bias)
        return y.to(x.dtype)


def all_reduce_sum(x: Tensor) -> Tensor:
    """The sum of every rank's `x`, differentiable. All ranks must call it, in the same order."""
    return _AllReduceSum.apply(x)


class _AllReduceSum(torch.autograd.Function):
    """Every rank's result holds every rank's x, so x's gradient is the sum of all ranks' own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def _per_channel(x: Tensor) -> Tensor:
    """[C] -> [1, C, 1, 1]."""
    return x.view(1, -1, 1, 1)
