from __future__ import annotations

import torch
from torch import Tensor, nn

from densekit.ops.reference import dense_block


class Sum(nn.Module):
    """One new channel: the sum of all channels before it."""

    def forward(self, features: list[Tensor]) -> Tensor:
        return torch.cat(features, 1).sum(1, keepdim=True)


def test_every_layer_reads_all_maps_before_it() -> None:
    x = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1)
    out = dense_block(x, [Sum(), Sum(), Sum()])
    assert out.flatten().tolist() == [1, 2, 3, 6, 12]
