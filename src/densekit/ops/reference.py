"""The dense block as the paper states it, by calling its modules: the truth for every other op."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def dense_block(x: Tensor, layers: Iterable[nn.Module]) -> Tensor:
    """Each layer reads all maps before it and adds k channels: [N, C, H, W] -> [N, C + L*k, H, W].

    A layer takes the list of maps, as torchvision's does. Hooks fire, replaced modules are used,
    and the modules update their own running statistics.
    """
    features = [x]
    for layer in layers:
        features.append(layer(features))
    return torch.cat(features, 1)
