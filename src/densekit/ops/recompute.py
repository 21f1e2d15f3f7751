"""The dense block by checkpoints: normalised copies are made again in backward instead of kept.

The known cure for DenseNet's memory (Pleiss et al., 2017, https://arxiv.org/abs/1707.06990), by
calling the modules: hooks fire and replaced modules are used, twice. Two things are unlike other
implementations: running statistics are touched once, and no convolution runs twice, since a
checkpoint ends with one and recomputing stops before it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def dense_block(x: Tensor, layers: Iterable[nn.Module]) -> Tensor:
    """[N, C, H, W] -> [N, C + L*k, H, W]: the reference's bit for bit, and so its gradients."""
    features = [x]
    for layer in layers:

        def checkpointed(half: Callable[..., Tensor], *inputs: Tensor, of: Any = layer) -> Tensor:
            contexts = (contextlib.nullcontext(), _RunningStatisticsKept(of))
            return checkpoint(half, *inputs, use_reentrant=False, context_fn=lambda: contexts)

        features.append(layer(features, checkpointed))
    return torch.cat(features, 1)


class _RunningStatisticsKept:
    """While it lasts, what batches do to the buffers of a layer's norms is done to copies.

    Entered once for each backward pass through the layer.
    """

    def __init__(self, layer: nn.Module) -> None:
        norms = (m for m in layer.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
        self.norms = list(norms)

    def __enter__(self) -> None:
        self.kept = [dict(norm._buffers) for norm in self.norms]
        for norm in self.norms:
            for name, buffer in norm._buffers.items():
                norm._buffers[name] = None if buffer is None else buffer.clone()

    def __exit__(self, *error: object) -> None:
        for norm, buffers in zip(self.norms, self.kept, strict=True):
            norm._buffers.update(buffers)
