"""Paddle's FLAGS_* in the environment: one means something to torch, the others are said not to."""

from __future__ import annotations

from collections.abc import Mapping

import torch

SEARCH = "FLAGS_cudnn_exhaustive_search"
NOTHING = {
    "FLAGS_cudnn_batchnorm_spatial_persistent": "torch chooses cuDNN's BatchNorm itself",
    "FLAGS_fraction_of_gpu_memory_to_use": "torch takes memory as it needs it",
    "FLAGS_allocator_strategy": "torch has its own allocator (PYTORCH_ALLOC_CONF)",
    "FLAGS_max_inplace_grad_add": "how Paddle sums gradients",
}


def follow(environment: Mapping[str, str]) -> list[str]:
    """Does what the flags ask for; returns a sentence for each of them."""
    said = []
    for name in sorted(name for name in environment if name.startswith("FLAGS_")):
        on = environment[name].lower() in ("1", "true", "yes", "on")
        if name == SEARCH:
            torch.backends.cudnn.benchmark = on
            said.append(f"{name}={environment[name]}: torch.backends.cudnn.benchmark={on}")
        else:
            said.append(
                f"{name}: means nothing here: {NOTHING.get(name, 'a switch of Paddle only')}"
            )
    return said
