"""Random transforms of training images; every draw comes from torch's global CPU generator.

The data set seeds that generator for each image (see `dataset.sample_seed`). A transform that is
off draws nothing, so adding a transform does not change runs that do not use it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import AutoAugmentPolicy, InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from densekit.data.config import AugmentConfig, DataConfig
from densekit.data.transforms import Preprocessing

Transform = Callable[[Tensor], Tensor]


def train_transform(config: DataConfig) -> Transform:
    """Crop, affine, flip, colours and erasing by `config`, in this order.

    uint8 [C, H, W] -> uint8 [C, S, S] with S = config.train_side.
    """
    return v2.Compose(
        [
            *_crop(config),
            *_affine(config.augment),
            *([v2.RandomHorizontalFlip(config.augment.flip)] if config.augment.flip else []),
            *_colours(config.augment, config.mean),
            *([Erase(config)] if config.augment.erase else []),
        ]
    )


def _crop(config: DataConfig) -> list[Transform]:
    mode, size, augment = InterpolationMode(config.interpolation), config.train_side, config.augment
    if augment.crop == "none":
        return [Preprocessing.from_config(config)]
    if augment.crop == "pad":
        resize = config.eval_resize
        first = [] if resize is None else [v2.Resize([resize], mode, antialias=config.antialias)]
        return [*first, v2.RandomCrop(size, augment.crop_padding or None, pad_if_needed=True)]
    if augment.crop_distribution == "paddle":
        return [PaddleCrop(config)]
    scale, ratio = augment.crop_scale, augment.crop_ratio
    return [v2.RandomResizedCrop(size, scale, ratio, mode, config.antialias)]


def _affine(augment: AugmentConfig) -> list[Transform]:
    degrees, shift, zoom = augment.affine_degrees, augment.affine_translate, augment.affine_scale
    if not (degrees or shift or zoom or augment.affine_shear):
        return []
    affine = v2.RandomAffine(
        degrees,
        translate=(shift, shift),
        scale=(1 - zoom, 1 + zoom),
        shear=augment.affine_shear,
        interpolation=InterpolationMode.BILINEAR,
    )
    return [_sometimes(affine, augment.affine_prob)]


def _colours(augment: AugmentConfig, mean: Sequence[float]) -> list[Transform]:
    mode, fill = InterpolationMode.BILINEAR, [round(255 * value) for value in mean]
    steps: list[Transform] = []
    if augment.auto_augment is not None:
        policy = v2.AutoAugment(AutoAugmentPolicy(augment.auto_augment), mode, fill)
        steps.append(_sometimes(policy, augment.policy_prob))
    if augment.rand_augment:
        magnitude = augment.rand_augment_magnitude
        policy = v2.RandAugment(augment.rand_augment, magnitude, 31, mode, fill)
        steps.append(_sometimes(policy, augment.policy_prob))
    if any(augment.color_jitter):
        jitter = v2.ColorJitter(*augment.color_jitter)
        steps.append(_sometimes(jitter, augment.color_jitter_prob))
    return steps


def _sometimes(transform: v2.Transform, probability: float) -> v2.Transform:
    return transform if probability == 1 else v2.RandomApply([transform], probability)


class PaddleCrop:
    """PaddleClas' RandCropImage: area and aspect ratio uniform, the area bounded so that it fits.

    torchvision's RandomResizedCrop draws the ratio log-uniformly and tries ten times.
    """

    def __init__(self, config: DataConfig) -> None:
        self.config, self.size = config, config.train_side

    def __call__(self, image: Tensor) -> Tensor:
        """uint8 [C, H, W] -> uint8 [C, size, size]."""
        config = self.config
        top, left, height, width = self.draw(*image.shape[1:])
        return F.resized_crop(
            image, top, left, height, width, [self.size, self.size],
            InterpolationMode(config.interpolation), config.antialias,
        )  # fmt: skip

    def draw(self, height: int, width: int) -> tuple[int, int, int, int]:
        """top, left, height and width of a random crop of an image of this size."""
        ratio = _uniform(*self.config.augment.crop_ratio)
        largest = min(width / height / ratio, height / width * ratio)  # share of the area
        low, high = (min(share, largest) for share in self.config.augment.crop_scale)
        side, aspect = math.sqrt(height * width * _uniform(low, high)), math.sqrt(ratio)
        w = max(1, min(int(side * aspect), width))
        h = max(1, min(int(side / aspect), height))
        left = int(torch.randint(width - w + 1, ()))
        top = int(torch.randint(height - h + 1, ()))
        return top, left, h, w


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * torch.rand((), dtype=torch.float64).item()


class Erase(v2.RandomErasing):
    """Random erasing of uint8 pixels, with what normalisation makes zeros or normal noise."""

    def __init__(self, config: DataConfig) -> None:
        augment = config.augment
        super().__init__(augment.erase, augment.erase_scale, augment.erase_ratio)
        self.mean = 255 * torch.tensor(config.mean).view(-1, 1, 1)
        self.std = 255 * torch.tensor(config.std).view(-1, 1, 1)
        self.noise = augment.erase_with == "noise"

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """torchvision's rectangle; `v`, what fills it, is None where none is erased."""
        found = super().make_params(flat_inputs)
        if found["v"] is not None:
            channels = flat_inputs[0].shape[0]
            shape = (channels, found["h"], found["w"]) if self.noise else (channels, 1, 1)
            spread = self.std * torch.randn(shape) if self.noise else 0
            found["v"] = (self.mean + spread).round().clamp(0, 255).expand(shape).to(torch.uint8)
        return found
