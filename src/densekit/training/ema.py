"""The moving average of a network's weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import PARAM_LIST, AveragedModel, get_ema_multi_avg_fn


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """The exponential moving average of weights and BatchNorm's running statistics.

    After n updates the decay is min(decay, (1 + n) / (10 + n)), as TensorFlow's and PaddleClas'
    moving averages have it, so that the initial weights are soon forgotten. Counters (BatchNorm's
    num_batches_tracked) are the network's own.
    """

    @torch.no_grad()
    def update(averages: PARAM_LIST, currents: PARAM_LIST, updates: Tensor | int) -> None:
        if averages[0].is_floating_point():
            n = int(average.n_averaged)  # the host's, where `updates` may be on the device
            get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averages, currents, updates)
        else:
            torch._foreach_copy_(averages, currents)

    average = AveragedModel(model, multi_avg_fn=update, use_buffers=True)
    return average
