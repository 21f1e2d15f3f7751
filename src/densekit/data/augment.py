"""Random transforms of training images; all draws come from torch's global CPU generator.

The data set seeds that generator for each image (see `dataset.sample_seeds`). A transform that is
off draws nothing, so adding a transform does not change runs that do not use it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.transforms import AutoAugmentPolicy, InterpolationMode, v2

from densekit.config import UserError
from densekit.data import jpeg
from densekit.data.augment_config import AugmentConfig
from densekit.data.config import DataConfig
from densekit.data.decode import Box, ImageFile, Resize
from densekit.data.transforms import Preprocessing

Stage = Callable[[Tensor], Tensor]
Region = Callable[[int, int], Box]
"""Draws a random crop of an image, given its height and width."""


class Copied(NamedTuple):
    """The square that is copied from an image."""

    top: int
    """Of its first row; it may lie beyond the image's edges, where zeros are."""
    left: int
    mirrored: bool


@dataclass(frozen=True)
class TrainTransform:
    """A data section's crop, affine, flip, colours and erasing, in this order.

    An image -> [C, S, S] with S = config.train_side, uint8 or float32 in 0..1.
    """

    region: Region | None
    """Draws the crop before decoding, so that only that part is decoded; None: decode all."""
    resize: Resize
    """Applied to that part."""
    flip: float
    """Probability of mirroring as part of the resize; only with `region`."""
    stages: tuple[Stage, ...]
    only_copies: Callable[[int, int], Copied] | None = None
    """The draws of the same, by height and width, where all of it copies pixels of the image."""

    def __call__(self, image: ImageFile) -> Tensor:
        return self.change(self.read(image))

    def read(self, image: ImageFile) -> Tensor:
        """The pixels that the stages start from. Raises UnreadableImage."""
        if self.region is None:
            return image.pixels()
        box, mirrored = self.part(image.height, image.width)
        return image.square(box, self.resize, mirrored)

    def part(self, height: int, width: int) -> tuple[Box, bool]:
        """Draws the part that is seen of an image of this size, and whether it is mirrored."""
        assert self.region is not None
        return self.region(height, width), _drawn(self.flip)

    def change(self, pixels: Tensor) -> Tensor:
        for stage in self.stages:
            pixels = stage(pixels)
        return pixels


def train_transform(config: DataConfig) -> TrainTransform:
    augment, size = config.augment, config.train_side
    mode = InterpolationMode(config.interpolation)
    region: Region | None = None
    crop: list[Stage] = []
    if augment.crop == "random_resized":
        paddle = augment.crop_distribution == "paddle"
        region = PaddleCrop(augment).draw if paddle else RandomResizedCrop(augment).draw
    elif augment.crop == "pad":
        resize = config.eval_resize
        first = [] if resize is None else [v2.Resize([resize], mode, antialias=config.antialias)]
        crop = [*first, PadCrop(size, augment.crop_padding)]
    else:
        crop = [Preprocessing.from_config(config)]
    moved = affine(augment)
    mirror = torch.tensor(augment.flip).item()  # in float32, which torch compares with
    flip_in_resize = mirror if region and not moved else 0.0
    flip: list[Stage] = [partial(_flipped, mirror)] if mirror > flip_in_resize else []
    erase: list[Stage] = [Erase(config)] if augment.erase else []
    stages: list[Stage] = [*crop, *moved, *flip, *colours(augment, config.mean), *erase]
    scaled = config.decode == "scaled"
    if scaled and (why := jpeg.why_no_reader()):
        raise UserError(f"data.decode=scaled is not available here: {why}; set data.decode=exact")
    to_square = Resize(size, config.interpolation, config.antialias, scaled)
    copied = None
    if [*crop, *flip] == stages and len(crop) == 1 and isinstance(crop[0], PadCrop):
        copied = partial(_copied, crop[0], mirror)
    return TrainTransform(region, to_square, flip_in_resize, tuple(stages), copied)


def _copied(crop: PadCrop, flip: float, height: int, width: int) -> Copied:
    top, left = crop.draw(height, width)
    return Copied(top, left, _drawn(flip))


class RandomResizedCrop:
    """The boxes of torchvision's RandomResizedCrop, from the same draws, without the tenth of a
    millisecond that its wrappers take."""

    def __init__(self, augment: AugmentConfig) -> None:
        self.scale, self.ratio = augment.crop_scale, augment.crop_ratio
        self.log_ratio = torch.log(torch.tensor(self.ratio)).tolist()

    def draw(self, height: int, width: int) -> Box:
        for _ in range(10):
            area = height * width * torch.empty(1).uniform_(*self.scale).item()
            ratio = torch.empty(1).uniform_(*self.log_ratio).exp_().item()
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top = int(torch.randint(height - h + 1, (1,)))
                return Box(top, int(torch.randint(width - w + 1, (1,))), h, w)
        # the largest centred crop of an allowed ratio
        ratio = min(max(width / height, min(self.ratio)), max(self.ratio))
        h = height if ratio <= width / height else round(width / ratio)
        w = width if ratio >= width / height else round(height * ratio)
        return Box((height - h) // 2, (width - w) // 2, h, w)


class PaddleCrop:
    """PaddleClas' RandCropImage: uniform area and aspect ratio, the area limited so that it fits.

    torchvision's RandomResizedCrop draws the ratio log-uniformly and tries ten times.
    """

    def __init__(self, augment: AugmentConfig) -> None:
        self.scale, self.ratio = augment.crop_scale, augment.crop_ratio

    def draw(self, height: int, width: int) -> Box:
        ratio = _uniform(*self.ratio)
        largest = min(width / height / ratio, height / width * ratio)  # share of the area
        low, high = (min(share, largest) for share in self.scale)
        side, aspect = math.sqrt(height * width * _uniform(low, high)), math.sqrt(ratio)
        w = max(1, min(int(side * aspect), width))
        h = max(1, min(int(side / aspect), height))
        left = int(torch.randint(width - w + 1, ()))
        top = int(torch.randint(height - h + 1, ()))
        return Box(top, left, h, w)


class PadCrop:
    """torchvision's RandomCrop(size, padding, pad_if_needed=True), from the same draws, without
    its wrappers and without padding pixels that are cropped away."""

    def __init__(self, size: int, padding: int) -> None:
        self.size, self.padding = size, padding

    def __call__(self, image: Tensor) -> Tensor:
        """[C, H, W] -> [C, size, size], zeros outside of the image."""
        channels, height, width = image.shape
        top, left = self.draw(height, width)
        cropped = image.new_zeros((self.size, self.size, channels)).permute(2, 0, 1)
        rows, own_rows = self._overlap(top, height)
        columns, own_columns = self._overlap(left, width)
        cropped[:, rows, columns] = image[:, own_rows, own_columns]
        return cropped

    def draw(self, height: int, width: int) -> tuple[int, int]:
        """Its first row and column in the image."""
        return self._draw(height), self._draw(width)

    def _draw(self, side: int) -> int:
        """The crop's offset from the image's edge; negative in the padding."""
        padding = self.padding + max(0, self.size - side - 2 * self.padding)
        room = side + 2 * padding - self.size
        return (int(torch.randint(room + 1, ())) if room else 0) - padding

    def _overlap(self, start: int, side: int) -> tuple[slice, slice]:
        """Where crop and image overlap: in the crop, and in the image."""
        first = max(0, start)
        last = max(first, min(side, start + self.size))
        return slice(first - start, last - start), slice(first, last)


def _flipped(probability: float, image: Tensor) -> Tensor:
    """Mirrors with this probability."""
    return image.flip(-1) if _drawn(probability) else image


def _drawn(probability: float) -> bool:
    """torchvision's Bernoulli draw; draws nothing at probability 0."""
    return probability > 0 and torch.rand(1).item() < probability


def affine(augment: AugmentConfig) -> list[Stage]:
    degrees, shift, zoom = augment.affine_degrees, augment.affine_translate, augment.affine_scale
    if not (degrees or shift or zoom or augment.affine_shear):
        return []
    moved = v2.RandomAffine(
        degrees,
        translate=(shift, shift),
        scale=(1 - zoom, 1 + zoom),
        shear=augment.affine_shear,
        interpolation=InterpolationMode.BILINEAR,
    )
    return [_sometimes(moved, augment.affine_prob)]


def colours(augment: AugmentConfig, mean: Sequence[float]) -> list[Stage]:
    mode, fill = InterpolationMode.BILINEAR, [round(255 * value) for value in mean]
    steps: list[Stage] = []
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


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * torch.rand((), dtype=torch.float64).item()


class Erase(v2.RandomErasing):
    """Random erasing before normalisation: filled so that it becomes zeros or normal noise."""

    def __init__(self, config: DataConfig) -> None:
        augment = config.augment
        super().__init__(augment.erase, augment.erase_scale, augment.erase_ratio)
        self.mean = 255 * torch.tensor(config.mean).view(-1, 1, 1)
        self.std = 255 * torch.tensor(config.std).view(-1, 1, 1)
        self.noise = augment.erase_with == "noise"

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """torchvision's rectangle and `v`, its fill; None: nothing is erased."""
        found = super().make_params(flat_inputs)
        if found["v"] is not None:
            channels = flat_inputs[0].shape[0]
            shape = (channels, found["h"], found["w"]) if self.noise else (channels, 1, 1)
            spread = self.std * torch.randn(shape) if self.noise else 0
            pixels = (self.mean + spread).clamp(0, 255).expand(shape)
            whole = flat_inputs[0].dtype == torch.uint8
            found["v"] = pixels.round().to(torch.uint8) if whole else pixels / 255
        return found
