"""The network as exported: transitions pool first, and preprocessing may be included.

N images, H rows, W columns, C channels, K classes.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from densekit.models.artifact import Preprocessing, Task
from densekit.models.densenet import DenseNet, Transition


class PooledTransition(nn.Module):
    """norm, relu, 2x2 average pool, 1x1 convolution: a `Transition`, in another order.

    The convolution mixes channels and the pool averages pixels, so they commute, and the
    convolution works on a quarter of the pixels.
    """

    def __init__(self, transition: Transition) -> None:
        super().__init__()
        self.norm, self.relu = transition.norm, transition.relu
        self.pool, self.conv = transition.pool, transition.conv

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, kept, H // 2, W // 2]."""
        return self.conv(self.pool(self.relu(self.norm(x))))


class ExportedNetwork(nn.Module):
    """float32 [N, C, H, W], normalised -> (logits [N, K],); or, with the preprocessing included,
    uint8 [N, H, W, C] -> (probabilities, logits). Takes float32 in 0..1 instead of uint8 if the
    intensity is not 8bit."""

    scale: Tensor
    shift: Tensor

    def __init__(
        self, network: DenseNet, task: Task, preprocessing: Preprocessing | None = None
    ) -> None:
        """Copies the network. Without `preprocessing`, inputs must be normalised."""
        super().__init__()
        self.network = pooled(network)
        self.task, self.inside = task, preprocessing is not None
        self.input_dtype = torch.float32 if preprocessing is None else preprocessing.scaling.dtype
        if preprocessing is not None:
            mean, std = (
                torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1)
                for values in (preprocessing.mean, preprocessing.std)
            )
            white = 1 if self.input_dtype.is_floating_point else 255
            self.register_buffer("scale", (1 / (white * std)).float())
            self.register_buffer("shift", (-mean / std).float())

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        if not self.inside:
            return (self.network(images),)
        x = images.permute(0, 3, 1, 2).float() * self.scale + self.shift
        logits = self.network(x)
        probabilities = logits.softmax(1) if self.task == "multiclass" else logits.sigmoid()
        return probabilities, logits


def pooled(network: DenseNet) -> DenseNet:
    """A copy in evaluation mode, with the reference op, whose transitions pool first."""
    network = copy.deepcopy(network).eval().cpu()
    # Traced in channels_last the same weights lost 41 points of top-1 in NNCF's int8
    network.to(memory_format=torch.contiguous_format)
    network.set_op("reference")
    for name, module in network.features.named_children():
        if isinstance(module, Transition):
            setattr(network.features, name, PooledTransition(module))
    return network


def traced(network: ExportedNetwork, channels: int, side: int, any_size: bool) -> ExportedProgram:
    """torch's exported program for any N; with `any_size`, for any H and W the network supports."""
    shape = (2, side, side, channels) if network.inside else (2, channels, side, side)
    images = torch.zeros(shape, dtype=network.input_dtype)
    height = 1 if network.inside else 2
    free = (0, height, height + 1) if any_size else (0,)
    return torch.export.export(
        network, (images,), dynamic_shapes=(dict.fromkeys(free, Dim.DYNAMIC),)
    )
