"""The images of the gate, and those for int8 calibration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from densekit.config import ConfigSource, UserError, build
from densekit.data.config import DataConfig
from densekit.data.dataset import Batch, epoch_order
from densekit.data.folders import class_folders, image_suffixes, images_below
from densekit.data.holdout import read_sides
from densekit.data.listing import Examples
from densekit.data.loader import eval_batches
from densekit.data.multilabel import Labelling
from densekit.data.splits import open_examples, open_split
from densekit.infer.evaluate import validation_examples
from densekit.infer.model import Opened
from densekit.progress import bar

BATCH_SIZE_READ = 16


@dataclass(frozen=True)
class RealImages:
    """Images from files, read as the network's input."""

    examples: Examples
    labelled: bool
    """False: the labels mean nothing."""
    opened: Opened

    def __len__(self) -> int:
        return len(self.examples)

    def batches(self, what: str, size: int = BATCH_SIZE_READ) -> Iterator[tuple[int, Batch]]:
        """Numbered batches, with a progress bar labelled `what`. Raises UserError."""
        opened, count = self.opened, -(-len(self) // size)
        read = eval_batches(
            self.examples, opened.preprocessing, size, workers=0, max_pixels=opened.max_pixels
        )
        return bar(read, count, what)

    def spread(self, limit: int) -> RealImages:
        """At most `limit` of them, evenly spaced over the list."""
        if len(self) <= limit:
            return self
        places = np.linspace(0, len(self) - 1, limit).round().astype(np.int64)
        return RealImages(self.examples.subset(places), self.labelled, self.opened)


def gate_images(opened: Opened, spec: str | None, limit: int) -> tuple[RealImages, list[str]]:
    """The images of `--images` (None: the network's own validation images), and notes on them.

    A single image or a folder without class folders has no labels. Raises UserError.
    """
    loose = None if spec is None else _loose(spec)
    if loose is not None:
        return RealImages(loose, False, opened).spread(limit), []
    examples, notes = validation_examples(opened, spec, "--images")
    return RealImages(examples, True, opened).spread(limit), notes


def calibration_images(opened: Opened, spec: str | None, limit: int) -> RealImages:
    """The images of `--calibration`; None: `limit` of the network's own training images, drawn with
    a fixed seed. Raises UserError."""
    if spec is None and not opened.data:
        raise UserError("say which images to calibrate int8 with: --calibration LIST|FOLDER")
    try:
        if spec is not None:
            labelling = Labelling(opened.task)
            examples = _loose(spec) or open_examples(spec, labelling=labelling, split="train")
        else:
            section = build(DataConfig, ConfigSource(opened.data))
            known = None if opened.split is None else read_sides(opened.split)
            examples = open_split(section, opened.task, known=known)[0]
    except UserError as error:
        asked = "" if spec else "; say where calibration images are: --calibration LIST|FOLDER"
        raise UserError(f"{error}{asked}") from error
    drawn = epoch_order(0, 0, len(examples))[:limit]
    return RealImages(examples.subset(np.sort(drawn)), False, opened)


def _loose(spec: str) -> Examples | None:
    """Unlabelled images; None if a list or class folders label them."""
    place = Path(spec).expanduser()
    if place.is_dir() and not class_folders(place):
        paths = images_below(place).paths
    elif place.is_file() and place.suffix.lower() in image_suffixes():
        paths = [str(place)]
    else:
        return None
    if not paths:
        raise UserError(f"{spec}: a folder without images")
    return Examples(paths, np.zeros(len(paths), np.int64), {}, str(place), str(place))
