"""`densekit train --data FOLDER`: looks at the images and picks what a practitioner would.

The rules, where "short side" is the median over a sample of files:

==============  ==============  ========================  =====================================
short side      image_size      training crop             resize
==============  ==============  ========================  =====================================
up to 63        the short side  pad by 4 pixels           to the short side, if sizes differ
64 to 159       128, 96 or 64   random_resized            8/7 of image_size
160 and more    224             random_resized            256
==============  ==============  ========================  =====================================
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from densekit.config import Tree, UserError, merge
from densekit.data.listing import Examples
from densekit.data.splits import find_part, locate, open_examples

SAMPLE = 64  # files whose headers are read
GREY = {"1", "L", "LA", "La", "I;16", "I;16B", "I"}  # PIL's modes
STEPS = 6000  # optimizer steps to train for, within EPOCHS
VAL_FRACTION = 0.2
EPOCHS = (30, 200)
BATCH = (32, 256)


@dataclass(frozen=True)
class Look:
    """What a sample of the files has in common."""

    short_sides: list[int]
    grey: bool

    @property
    def short_side(self) -> int:
        return int(median(self.short_sides))

    @property
    def all_alike(self) -> bool:
        return len(set(self.short_sides)) == 1


def own_images(folder: str | Path) -> tuple[Tree, list[str]]:
    """What `--data FOLDER` puts in the place of a recipe's own images, and a sentence that says so.

    Raises UserError where there is nothing to train on.
    """
    spec, _, train, has_val = _open_own(folder)
    fraction = 0.0 if has_val else VAL_FRACTION
    tree: Tree = {
        "data": {"root": None, "train": spec, "val": None, "val_fraction": fraction},
        "model": {"num_classes": None},
    }
    held = "" if has_val else f"; data.val_fraction={fraction} of each class is held out"
    classes = len(np.unique(train.labels))
    return tree, [
        f"--data {folder}: {len(train)} images of {classes} classes in the place of the recipe's "
        f"own{held}"
    ]


def _open_own(folder: str | Path) -> tuple[str, Path, Examples, bool]:
    """What data.train becomes, the place, its training images, and whether it has others."""
    builtin = str(folder).startswith("builtin:")
    spec = str(folder) if builtin else str(Path(folder).expanduser().absolute())
    place = locate(spec)
    train = open_examples(str(place), split="train")
    if len(np.unique(train.labels)) < 2:
        raise UserError(
            f"{train.origin}: all images are of one class; give a folder with one folder per class"
        )
    return spec, place, train, place.is_dir() and find_part(place, "val") is not None


def suggest(folder: str | Path) -> tuple[Tree, list[str]]:
    """Settings for the images in `folder`, as a recipe has them, and sentences that say why.

    `folder` is anything that data.train may be. Raises UserError where there is nothing to train
    on.
    """
    spec, place, train, has_val = _open_own(folder)
    classes = len(np.unique(train.labels))
    look = look_at(train)
    picks = [
        (
            {"name": place.stem, "data": {"train": spec}},
            f"{len(train)} images of {classes} classes in {train.origin}",
        ),
        _validation(has_val),
        _size(look),
        _channels(look),
        _flip(train),
        _length(len(train) if has_val else round((1 - VAL_FRACTION) * len(train))),
    ]
    tree: Tree = {}
    for settings, _ in picks:
        tree = merge(tree, settings)
    return tree, [sentence for _, sentence in picks if sentence]


def look_at(examples: Examples) -> Look:
    """Reads the headers of a sample of the files. Raises UserError if none can be read."""
    sizes, modes = [], set()
    for index in np.unique(np.linspace(0, len(examples) - 1, SAMPLE).astype(int)).tolist():
        # A file that is no image is named later, when the data is checked.
        with (
            contextlib.suppress(OSError, SyntaxError, ValueError, Image.DecompressionBombError),
            Image.open(examples.paths[index]) as image,
        ):
            sizes.append(min(image.size))
            modes.add(image.mode)
    if not sizes:
        raise UserError(f"{examples.where(0)}: {examples.paths[0]}: cannot be read as an image")
    return Look(sizes, modes <= GREY)


Pick = tuple[Tree, str]


def _validation(has_val: bool) -> Pick:
    if has_val:
        return {}, ""
    return {"data": {"val_fraction": VAL_FRACTION}}, (
        f"no validation images of their own: data.val_fraction={VAL_FRACTION} of each class is "
        f"held out"
    )


def _size(look: Look) -> Pick:
    side = look.short_side
    if side < 64:
        resize = None if look.all_alike else side
        settings = {
            "image_size": side,
            "evaluate": {"resize": resize},
            "augment": {"crop": "pad", "crop_padding": 4},
        }
        model = {"name": "densenet_bc_100_12"}
        return {"data": settings, "model": model}, (
            f"the short side is {side} pixels: data.image_size={side}, and a model for small "
            f"images, model.name=densenet_bc_100_12"
        )
    size, resize = (224, 256) if side >= 160 else (side // 32 * 32, round(side // 32 * 32 * 8 / 7))
    settings = {
        "image_size": size,
        "evaluate": {"resize": resize},
        "augment": {"crop": "random_resized"},
    }
    return {"data": settings}, (
        f"the short side is {side} pixels (median): data.image_size={size}, "
        f"data.evaluate.resize={resize}"
    )


def _channels(look: Look) -> Pick:
    if not look.grey:
        return {}, ""
    grey = {"channels": 1, "mean": [0.5], "std": [0.5]}
    return {"data": grey, "model": {"in_channels": 1}}, (
        "the files are grey: data.channels=1 (to start from weights for colour images, set "
        "data.channels=3 and model.in_channels=3)"
    )


def _flip(train: Examples) -> Pick:
    names = train.classes.values()
    if not names or any(len(name) > 1 for name in names):
        return {}, ""
    return {"data": {"augment": {"flip": 0.0}}}, (
        "classes look like characters, not to be mirrored: data.augment.flip=0"
    )


def _length(images: int) -> Pick:
    """Batch and epochs by the number of training images."""
    batch = min(max(2 ** int(math.log2(max(images, 1) / 50 + 1)), BATCH[0]), BATCH[1])
    epochs = min(max(round(STEPS / math.ceil(images / batch), -1), EPOCHS[0]), EPOCHS[1])
    optim = {"schedule": "cosine", "warmup_epochs": epochs // 20, "nesterov": True}
    return {"data": {"batch_size": batch}, "optim": optim, "loop": {"epochs": epochs}}, (
        f"{images} training images: data.batch_size={batch}, loop.epochs={epochs}, a cosine "
        f"schedule; with model.pretrained a third of the epochs is often enough"
    )
