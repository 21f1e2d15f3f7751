"""Opens a sample of a folder's images to see their size, colour and depth."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import numpy as np
from PIL import Image

from densekit.data.config import MAX_PIXELS
from densekit.data.decode import UnreadableImage, content_of, decode, raise_pils_limit
from densekit.data.listing import Examples
from densekit.data.pixels import TIFF, is_16_bit, is_pils, is_plain_tiff, read_pixels

FILES_SAMPLED = 64  # files that are opened
COLOURLESS = 2  # of 255: mean difference between the channels below which a colour image is grey
GREY = {"1", "L", "LA", "La", "I;16", "I;16B", "I", "F"}  # PIL's modes
NO_IMAGE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Look:
    """What the sampled files have in common."""

    short_sides: list[int]
    grey: bool
    """Stored in one channel."""
    colourless: bool
    """Grey, in one channel or three equal ones."""
    deep: bool = False
    """Some have more than 8 bits."""
    channels: int = 3
    """Of arrays and TIFF; 3 if there are other files among them."""

    @property
    def short_side(self) -> int:
        return int(median(self.short_sides))

    @property
    def all_alike(self) -> bool:
        return len(set(self.short_sides)) == 1


def look_at(examples: Examples, max_pixels: int = MAX_PIXELS) -> Look:
    """Opens a sample of the files. Raises UserError if none can be read."""
    raise_pils_limit(max_pixels)
    seen: list[_Seen] = []
    for index in np.unique(np.linspace(0, len(examples) - 1, FILES_SAMPLED).astype(int)).tolist():
        # A file that is not an image is reported later, when the data is checked.
        with contextlib.suppress(*NO_IMAGE):
            seen.append(_see(content_of(examples.image(index)).content, max_pixels))
    if not seen:
        try:
            decode(examples.image(0), 3, max_pixels)
        except UnreadableImage as error:
            raise error.at(examples.where(0)) from error
    channels = {each.channels for each in seen}
    return Look(
        [each.short_side for each in seen],
        grey=channels == {1},
        colourless=all(each.colourless for each in seen),
        deep=any(each.deep for each in seen),
        channels=channels.pop() if len(channels) == 1 else 3,
    )


class _Seen(NamedTuple):
    """What one file looks like."""

    short_side: int
    channels: int
    colourless: bool
    deep: bool


def _see(data: bytes, max_pixels: int) -> _Seen:
    if not is_pils(data) or (data.startswith(TIFF) and not is_plain_tiff(data)):
        values = read_pixels(data, max_pixels).values
        side, channels = min(values.shape[:2]), values.shape[2]
        return _Seen(side, channels, channels == 1, values.dtype != np.uint8)
    with Image.open(io.BytesIO(data)) as image:
        grey, deep = image.mode in GREY, is_16_bit(image) or image.mode in ("I", "F")
        return _Seen(min(image.size), 1 if grey else 3, grey or _colourless(image), deep)


def _colourless(image: Image.Image) -> bool:
    image.draft("RGB", (64, 64))  # decodes a JPEG at a fraction of its size
    pixels = np.asarray(image.convert("RGB"), dtype=np.int16)
    return bool(np.ptp(pixels, axis=2).mean() < COLOURLESS)
