"""The dense block with gradient checkpointing: backward recomputes the normalised activations.

This is the known way to save a DenseNet's memory (Pleiss et al., 2017,
https://arxiv.org/abs/1707.06990). It calls the modules, so hooks fire and replaced modules are
used, both in forward and again in backward. Unlike in other implementations, running statistics are
updated only once, and no convolution runs twice: each checkpoint ends with a convolution, and
recomputing stops before it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@torch.compiler.disable(  # it has no rule for what a checkpoint does to the norms
    reason="model.op=recompute cannot be in a graph; for one graph use model.op=reference"
)
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
    """Inside it, a layer's norms update copies of their buffers: a recomputed forward pass must not
    move the running statistics again.
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
