"""How many bytes the decoded images of a run are, by a sample of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from densekit.config import UserError
from densekit.data.config import DataConfig
from densekit.data.decode import open_image
from densekit.data.listing import Examples

SIZED = 64  # images of each split, by which the size of all is estimated


class Estimate(NamedTuple):
    """Of decoded images, by a sample of them."""

    images: int
    bytes: int
    height: int
    width: int
    alike: bool
    """Whether all of the sample have this size, which else is their median."""

    def __str__(self) -> str:
        size = f"{'' if self.alike else 'about '}{self.width}x{self.height}"
        return f"{readable_bytes(self.bytes)}, {self.images:,} images of {size}"


def estimate(config: DataConfig, parts: Sequence[Examples]) -> Estimate | None:
    """None where no image of the sample can be read."""
    sizes: list[tuple[int, int]] = []
    pixels = 0.0
    for examples in parts:
        of_part = list(_sampled(examples, config))
        if of_part:
            pixels += len(examples) * float(np.mean([h * w for h, w in of_part]))
        sizes += of_part
    if not sizes:
        return None
    height, width = np.median(np.array(sizes), 0).astype(int).tolist()
    each = config.channels * config.scaling.dtype.itemsize
    images = sum(map(len, parts))
    return Estimate(images, round(pixels * each), height, width, len(set(sizes)) == 1)


def _sampled(examples: Examples, config: DataConfig) -> Iterator[tuple[int, int]]:
    """Height and width of images spread over all that can be read."""
    last, channels, limit = len(examples) - 1, config.channels, config.max_pixels
    for index in np.unique(np.linspace(0, last, min(last + 1, SIZED)).astype(int)).tolist():
        try:
            image = open_image(examples.image(index), channels, limit, config.scaling)
        except UserError:
            continue
        yield image.height, image.width


def readable_bytes(count: float) -> str:
    """168 MB, 7.2 GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(1, round(count / 1e6))} MB"
