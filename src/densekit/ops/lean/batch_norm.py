"""BatchNorm's work on vectors of channels: statistics of all ranks, and running statistics.

Moments are [2, c], float64: each channel's mean, and the sum of squared distances from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from densekit.config import UserError
from densekit.ops.lean.kernels.plain import merge_moments


def several_ranks() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather_moments(moments: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The moments of all ranks' values together, and how many values there are.

    Ranks are merged in their order, so all get the same numbers. Every rank must call it; one
    without images adds nothing.
    """
    own = torch.cat([moments.flatten(), moments.new_tensor([float(count)])])
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own)
    gathered = torch.stack(parts)
    counts = gathered[:, -1]
    if count <= 1 and counts.sum() <= 1:  # no rank has more, so all stop here
        raise UserError(
            "BatchNorm needs more than one value per channel over all ranks in training: use a "
            "larger batch or larger images"
        )
    return merge_moments(gathered[:, :-1].view(-1, *moments.shape), counts), counts.sum()


def reduce_sums(sums: Tensor, sync: bool) -> Tensor:
    """The sum over ranks if BatchNorm is synchronised, else `sums`, which is never changed."""
    if not (sync and several_ranks()):
        return sums
    total = sums.clone()
    dist.all_reduce(total)
    return total


@torch.no_grad()
def update_running(
    norms: Sequence[nn.BatchNorm2d],
    means: Sequence[Tensor] | Tensor,
    variances: Sequence[Tensor] | Tensor,
) -> None:
    """Updates the running statistics of each norm from a batch's mean and unbiased variance.

    As torch.nn.BatchNorm2d does; with momentum None they are the average over all batches.
    """
    torch._foreach_add_([_present(norm.num_batches_tracked) for norm in norms], 1)
    for momentum in {norm.momentum for norm in norms}:
        chosen = [i for i, norm in enumerate(norms) if norm.momentum == momentum]
        running_means = [_present(norms[i].running_mean) for i in chosen]
        running_vars = [_present(norms[i].running_var) for i in chosen]
        for buffers, new in ((running_means, means), (running_vars, variances)):
            values = [new[i].to(buffer.dtype) for i, buffer in zip(chosen, buffers, strict=True)]
            if momentum is None:
                counts = [_present(norms[i].num_batches_tracked) for i in chosen]
                for buffer, value, count in zip(buffers, values, counts, strict=True):
                    buffer.lerp_(value, count.to(value.dtype).reciprocal())
            else:
                torch._foreach_mul_(buffers, 1 - momentum)
                torch._foreach_add_(buffers, values, alpha=momentum)


def _present(buffer: Tensor | None) -> Tensor:
    assert buffer is not None
    return buffer


def refuse_one_value(x: Tensor, sync: bool) -> None:
    """Raises ValueError, as torch.nn.BatchNorm2d in training, for one value per channel."""
    if x.shape[0] * x.shape[2] * x.shape[3] == 1 and not sync:
        raise ValueError(f"Expected more than 1 value per channel when training, got {x.shape}")


def running_moments(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The running statistics in the form of a batch's moments and count (1)."""
    moments = torch.stack([_present(norm.running_mean), _present(norm.running_var)]).double()
    return moments, moments.new_ones(())


def mean_and_variance(
    moments: Tensor, count: Tensor, norm: nn.BatchNorm2d
) -> tuple[Tensor, Tensor]:
    """Moments [n, 2, c] -> means and unbiased variances, both [n, c] in the dtype of buffers."""
    dtype = _present(norm.running_mean).dtype
    return moments[:, 0].to(dtype), (moments[:, 1] / (count - 1)).to(dtype)


def refuse_second_derivative(*_: Any) -> None:
    raise RuntimeError("lean has no second derivative; use model.op=reference")
