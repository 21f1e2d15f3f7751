"""16-bit files that hold fewer bits, which a network would see as nearly black.

X-ray detectors and microscopes give 10, 12 or 14 bits, often saved in files of 16. `decode` keeps
the high 8 bits of a file of 16, so of 12 bits it keeps 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from densekit.data.decode import is_16_bit
from densekit.data.listing import readable

SAMPLE = 64  # files that are looked at
DARK = 1 << 14  # where no value of any file reaches this, the highest two bits are unused


def dark_files(paths: Sequence[str | Path], sample: int = SAMPLE) -> list[str]:
    """A sentence if the 16-bit files among `sample` of these leave their highest bits unused.

    All of them are taken together, since one picture may be dark by itself.
    """
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
        f"at); save the files with 8 bits, or multiply their values by {1 << (16 - bits)}"
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
