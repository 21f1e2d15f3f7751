"""Which operators run: torch's own and ours, by name."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from densekit.models.densenet import DenseNetConfig

SMALL = DenseNetConfig(
    growth_rate=4, block_config=(2, 2), num_init_features=8, bn_size=2, num_classes=3
)
LEAN = {"densekit::dense_block": 2, "densekit::norm_relu": 2}
"""What a forward pass of SMALL has of it: two blocks; a stem and a transition."""


class Seen(TorchDispatchMode):
    """While it is on: how often each operator ran, and what it was called with last."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.arguments: dict[Any, tuple[Any, ...]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.counts[func._schema.name] += 1
        self.arguments[func] = args
        return func(*args, **(kwargs or {}))

    @property
    def lean(self) -> dict[str, int]:
        """Of dense blocks, and of norms with what follows them."""
        return {name: self.counts[name] for name in LEAN if self.counts[name]}


def images(n: int = 4, size: int = 32, seed: int = 0) -> torch.Tensor:
    """[n, 3, size, size]."""
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))
