"""Mixup and cutmix of a micro-batch's images and labels.

n images, C channels, S side, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor
from torchvision.transforms import v2

from densekit.data.config import DataConfig

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def mixing(config: DataConfig, num_classes: int) -> Mix:
    """float [n, C, S, S] and labels -> the same and their targets, or mixed ones, float [n, K].

    One draw for the whole micro-batch; each image is mixed with its neighbour. From int64 labels
    [n], mixed rows sum to 1; from int8 [n, K], a mixture with an unknown label is unknown. Draws
    from torch's global CPU generator, which a step seeds by (seed, step, micro-batch, rank).
    """
    augment = config.augment
    if not augment.mixes:
        return lambda images, labels: (images, as_targets(labels))
    choice = v2.RandomChoice(
        [
            v2.MixUp(alpha=augment.mixup_alpha, num_classes=num_classes),
            v2.CutMix(alpha=augment.cutmix_alpha, num_classes=num_classes),
            v2.Identity(),
        ],
        p=[augment.mixup, augment.cutmix, max(0.0, 1 - augment.mixup - augment.cutmix)],
    )

    def mix(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        targets = as_targets(labels)
        return choice(images, targets) if len(images) else (images, targets)

    return mix


def as_targets(labels: Tensor) -> Tensor:
    """int64 [n] unchanged; int8 [n, K] -> float32, with NaN for unknown."""
    return labels if labels.ndim == 1 else labels.float().masked_fill(labels < 0, math.nan)
