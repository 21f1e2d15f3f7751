"""Opens a run's training and validation images, and checks them before the first step."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from densekit import distributed
from densekit.data.checks import check_split
from densekit.data.config import DataConfig, Task
from densekit.data.holdout import Sides
from densekit.data.listing import Examples
from densekit.data.splits import open_split

OwnImages = Callable[[DataConfig, Task, int | None, Sides | None], tuple[Examples, Examples]]
"""As `open_split`."""


def open_checked(
    config: DataConfig,
    task: Task,
    num_classes: int | None,
    known: Sides | None,
    images: OwnImages | None,
) -> tuple[Examples, Examples, np.ndarray, list[str]]:
    """Training images, validation images, training images per class, int64 [K], and notes; the
    same on all ranks.
    See `open_split` and `check_split`; `images` replaces the former. Raises UserError.
    """
    opens = open_split if images is None else images
    train, val = distributed.on_every_rank(lambda: opens(config, task, num_classes, known))
    counts, notes = distributed.from_main(lambda: check_split(train, val, num_classes, config))
    return train, val, counts, notes
