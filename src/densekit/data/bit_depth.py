"""16-bit files that hold fewer bits, which a network would see as nearly black.

X-ray detectors and microscopes give 10, 12 or 14 bits, often saved in files of 16. Under
data.intensity=8bit the high 8 bits of 16 are kept, so of 12 bits 4; under full all of them, dark.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from densekit.data.decode import EIGHT_BITS
from densekit.data.intensity import Intensity
from densekit.data.listing import readable
from densekit.data.pixels import is_16_bit

SAMPLE = 64  # files that are looked at
DARK = 1 << 14  # where no value of any file reaches this, the highest two bits are unused


def dark_files(
    paths: Sequence[str | Path], intensity: Intensity = EIGHT_BITS, sample: int = SAMPLE
) -> list[str]:
    """A sentence if the 16-bit files among `sample` of these leave their highest bits unused, and
    `intensity` does not see to it.

    All of them are taken together, since one picture may be dark by itself.
    """
    if intensity.rule not in ("8bit", "full"):
        return []
    spread = np.unique(np.linspace(0, len(paths) - 1, min(sample, len(paths))).astype(int))
    found = [(paths[index], _largest(paths[index])) for index in spread.tolist()]
    largest = {path: value for path, value in found if value is not None}
    if not largest or max(largest.values()) >= DARK:
        return []
    path, value = max(largest.items(), key=lambda item: item[1])
    bits = max(value, 1).bit_length()
    return [
        f"{readable(str(path))}: a 16-bit image whose largest value is {value}, {bits} bits, so "
        f"the network sees it nearly black ({len(largest)} such files of {len(spread)} looked "
        f"at); data.intensity=percentile or window scales them; or multiply their values by "
        f"{1 << (16 - bits)}"
    ]


def _largest(path: str | Path) -> int | None:
    """The largest value in a 16-bit file; None for any other."""
    try:
        if not Path(path).is_file():  # a pipe might never end
            return None
        with Image.open(path) as image:
            return int(np.asarray(image).max()) if is_16_bit(image) else None
    except Exception:  # PIL's plugins raise many kinds; what cannot be read is said elsewhere
        return None
