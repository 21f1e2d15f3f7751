"""The moving average of a network's weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class MovingAverage(AveragedModel):
    """The exponential moving average of weights and BatchNorm's running statistics.

    After n updates the decay is min(decay, (1 + n) / (10 + n)), as TensorFlow's and PaddleClas'
    moving averages have it, so that the initial weights are soon forgotten. Counters (BatchNorm's
    num_batches_tracked) are the network's own.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, use_buffers=True)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """A few launches; torch's own copies the count to the device, so the host waits for it."""
        n = int(self.n_averaged)  # on the host, wherever the network is
        averages, currents = _tensors(self.module), _tensors(model)
        floats = [i for i, average in enumerate(averages) if average.is_floating_point() and n]
        others = [i for i in range(len(averages)) if i not in set(floats)]
        if floats:
            decay = min(self.decay, (1 + n) / (10 + n))
            torch._foreach_lerp_(
                [averages[i] for i in floats], [currents[i] for i in floats], 1 - decay
            )
        if others:
            torch._foreach_copy_([averages[i] for i in others], [currents[i] for i in others])
        self.n_averaged += 1


def _tensors(model: nn.Module) -> list[Tensor]:
    return [tensor.detach() for tensor in (*model.parameters(), *model.buffers())]
