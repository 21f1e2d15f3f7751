"""Evaluation's resize and crop to the network's square input, and its normalisation.

A square is uint8, or float32 in 0..1 if `data.intensity` is not 8bit.
Shapes: N images, C channels, H height, W width.
"""

from __future__ import annotations

import functools

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from densekit.config import Section
from densekit.data import on_cpu
from densekit.data.config import (
    DataConfig,
    Interpolation,
    Rounding,
    Span,
    ValueWindow,
    check_agreement,
)
from densekit.data.decode import ImageFile, Resize
from densekit.data.intensity import Intensity, Rule
from densekit.native_code import has_triton


class Preprocessing(Section):
    """What evaluation and prediction do to an image; stored in every artifact."""

    channels: int = Field(3, ge=1)
    """3: RGB, 1: grey; 8-bit images are converted, others must have that many."""
    intensity: Rule = "8bit"
    """How a file's values become pixels; see data.intensity."""
    percentiles: Span[float] = (0.5, 99.5)
    """For intensity=percentile: the low and the high percentile."""
    window: ValueWindow = None
    """For intensity=window: centre and width; null: a DICOM file's own."""
    resize: int | None = Field(256, ge=1)
    """Pixels of the short side before the crop; null: no resize."""
    crop: int = Field(224, ge=1)
    """Side in pixels of the square cut from the centre; a smaller image is padded with zeros."""
    interpolation: Interpolation = "bilinear"
    """How the resize interpolates."""
    antialias: bool = True
    """Whether the resize smooths before it shrinks."""
    rounding: Rounding = "torchvision"
    """torchvision: rounds the long side down and the crop's offset to nearest; paddle: rounds the
    long side to nearest and the offset down."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Per channel, of pixels in 0..1; a single value applies to all channels."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """As `mean`."""

    @model_validator(mode="after")
    def _agrees(self) -> Preprocessing:
        check_agreement(self.channels, self.resize, self.crop, self.mean, self.std)
        return self

    @classmethod
    def from_config(cls, config: DataConfig) -> Preprocessing:
        return cls(
            channels=config.channels,
            intensity=config.intensity,
            percentiles=config.percentiles,
            window=config.window,
            resize=config.eval_resize,
            crop=config.image_size,
            interpolation=config.interpolation,
            antialias=config.antialias,
            rounding=config.evaluate.rounding,
            mean=config.mean,
            std=config.std,
        )

    @property
    def scaling(self) -> Intensity:
        """How files are decoded."""
        return Intensity(self.intensity, self.percentiles, self.window)

    def __call__(self, image: Tensor) -> Tensor:
        """[C, H, W] -> [C, crop, crop] of the same dtype, as torchvision's Resize and CenterCrop
        do, or PaddleClas' ResizeImage and CropImage."""
        height, width = self._resized(*image.shape[1:])
        if self.resize is not None:
            mode = InterpolationMode(self.interpolation)
            image = F.resize(image, [height, width], interpolation=mode, antialias=self.antialias)
        if min(height, width) < self.crop:
            return F.center_crop(image, [self.crop, self.crop])
        top, left = self._corner(height, width)
        return image[:, top : top + self.crop, left : left + self.crop]

    def square(self, image: ImageFile) -> Tensor:
        """The image decoded, resized and cropped: [C, crop, crop]. Raises UnreadableImage."""
        height, width = self._resized(image.height, image.width)
        if min(height, width) < self.crop:
            return self(image.pixels())
        resize = Resize(self.crop, self.interpolation, self.antialias)
        return image.window((height, width), *self._corner(height, width), resize)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """An image's size before the crop."""
        if self.resize is None:
            return height, width
        short = min(height, width)
        if self.rounding == "paddle":
            factor = self.resize / short
            return round(height * factor), round(width * factor)
        long = int(self.resize * max(height, width) / short)
        return (long, self.resize) if width <= height else (self.resize, long)

    def _corner(self, height: int, width: int) -> tuple[int, int]:
        """Top and left of the crop, in an image that it fits into."""
        top, left = (height - self.crop) / 2, (width - self.crop) / 2
        return (int(top), int(left)) if self.rounding == "paddle" else (round(top), round(left))

    def normalize(
        self,
        batch: Tensor,
        memory_format: torch.memory_format = torch.preserve_format,
        out: Tensor | None = None,
    ) -> Tensor:
        """Squares [N, C, H, W], see `standardize`."""
        return standardize(batch, self.mean, self.std, memory_format, out)


def standardize(
    batch: Tensor,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    memory_format: torch.memory_format = torch.preserve_format,
    out: Tensor | None = None,
) -> Tensor:
    """[N, C, H, W] -> float32 (x - mean) / std on the same device, where uint8 is first divided by
    255. Written to `out` if given, which excludes `memory_format`."""
    means, stds = _on_device(mean, batch.device), _on_device(std, batch.device)
    asked = memory_format != torch.preserve_format
    if asked and batch.is_cuda and batch.dtype == torch.uint8 and has_triton():
        from densekit.data import on_gpu  # imports triton

        return on_gpu.normalize(batch, means, stds, memory_format)
    if batch.is_cpu:
        found = on_cpu.normalize_batch(batch, means, stds, memory_format, out)
        if found is not None:
            return found
    if asked:
        batch = batch.contiguous(memory_format=memory_format)
    if batch.is_floating_point():
        return torch.sub(batch, means, out=out).div_(stds)
    return torch.div(batch, 255, out=out).sub_(means).div_(stds)


@functools.cache
def _on_device(values: tuple[float, ...], device: torch.device) -> Tensor:
    """float32 [1, C, 1, 1]; cached, since each copy makes the host wait for the device."""
    with torch.inference_mode(False):  # training may use the same tensor later
        return torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, 1, 1)
