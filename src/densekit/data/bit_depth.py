"""Finds 16-bit files that use fewer bits, which a network would see as nearly black.

X-ray detectors and microscopes give 10, 12 or 14 bits, often saved as 16. data.intensity=8bit
keeps the high 8 of 16 bits, which leaves 4 of 12; full keeps all of them, but dark.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from densekit.data.decode import EIGHT_BITS
from densekit.data.intensity import Intensity
from densekit.data.listing import Content, readable
from densekit.data.pixels import is_16_bit

SAMPLE = 64  # files that are checked
DARK = 1 << 14  # if no value of any file reaches this, the highest two bits are unused


def dark_files(
    images: Sequence[Any], intensity: Intensity = EIGHT_BITS, sample: int = SAMPLE
) -> list[str]:
    """A warning if the 16-bit files in a sample leave their highest bits unused and `intensity`
    does not scale them; items that are neither a file nor a Content are ignored.
    The files are judged together, since a single image may simply be dark.
    """
    if intensity.rule not in ("8bit", "full"):
        return []
    spread = np.unique(np.linspace(0, len(images) - 1, min(sample, len(images))).astype(int))
    found = [(_name(images[index]), _largest(images[index])) for index in spread.tolist()]
    largest = {name: value for name, value in found if value is not None}
    if not largest or max(largest.values()) >= DARK:
        return []
    name, value = max(largest.items(), key=lambda item: item[1])
    bits = max(value, 1).bit_length()
    return [
        f"{readable(name)}: a 16-bit image whose largest value is {value}, {bits} bits, so "
        f"the network sees it nearly black ({len(largest)} such files of {len(spread)} looked "
        f"at); scale them with data.intensity=percentile or window, or multiply their values by "
        f"{1 << (16 - bits)}"
    ]


def _name(image: Any) -> str:
    return image.name if isinstance(image, Content) else str(image)


def _largest(source: Any) -> int | None:
    """The largest value in a 16-bit file; None for any other."""
    try:
        if isinstance(source, Content):
            source = io.BytesIO(source.content)
        elif not isinstance(source, (str, Path)) or not Path(source).is_file():
            return None  # a pipe might never end
        with Image.open(source) as image:
            return int(np.asarray(image).max()) if is_16_bit(image) else None
    except Exception:  # PIL's plugins raise many kinds; what cannot be read is said elsewhere
        return None
