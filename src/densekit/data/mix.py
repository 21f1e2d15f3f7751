"""Mixup and cutmix: images of a micro-batch and their labels, mixed with each other.

n images, C channels, S side, K classes.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torchvision.transforms import v2

from densekit.data.config import DataConfig

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def mixing(config: DataConfig, num_classes: int) -> Mix:
    """float [n, C, S, S] and int64 labels [n] -> the same, or mixed images and float [n, K].

    One mixture for all images of a micro-batch, each with its neighbour. Rows of labels sum to 1
    and go into the cross entropy as they are. Draws from torch's global CPU generator, which a
    step seeds by (seed, step, micro-batch, rank).
    """
    augment = config.augment
    if not augment.mixes:
        return lambda images, labels: (images, labels)
    choice = v2.RandomChoice(
        [
            v2.MixUp(alpha=augment.mixup_alpha, num_classes=num_classes),
            v2.CutMix(alpha=augment.cutmix_alpha, num_classes=num_classes),
            v2.Identity(),
        ],
        p=[augment.mixup, augment.cutmix, max(0.0, 1 - augment.mixup - augment.cutmix)],
    )

    def mix(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return choice(images, labels) if len(images) else (images, labels)

    return mix
