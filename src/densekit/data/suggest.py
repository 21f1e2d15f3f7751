"""`densekit train --data FOLDER`: looks at the images and picks settings as a practitioner would.

The rules, where "short side" is the median over a sample of files:

==============  ==============  ========================  =====================================
short side      image_size      training crop             resize
==============  ==============  ========================  =====================================
up to 63        the short side  pad by 4 pixels           to the short side, if sizes differ
64 to 159       128, 96 or 64   random_resized            8/7 of image_size
160 and more    224             random_resized            256
==============  ==============  ========================  =====================================

Grey images, such as X-rays, are not mirrored and are cropped less; characters are not mirrored.
Each choice is reported.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar, get_args

import numpy as np

from densekit.config import Tree, UserError, merge, parse_override
from densekit.data.config import MAX_PIXELS, Task
from densekit.data.groups import with_groups
from densekit.data.listing import Examples, readable
from densekit.data.look import Look, look_at
from densekit.data.multilabel import ONE_CLASS, Labelling
from densekit.data.splits import find_part, is_remote_folder, locate_images, open_examples
from densekit.data.suggest_tuning import ASKED, tuning_settings
from densekit.remote import is_url

T = TypeVar("T")
SMALL = 64  # pixels; images with a longer short side are cropped as photographs are
CHARACTERS = 8  # classes with one-character names from which images count as characters
GENTLE_CROP = [0.5, 1.0]
STEPS = 6000  # optimizer steps to train for, within EPOCHS
VAL_FRACTION = 0.2
ENLARGED = 128  # pixels; small images are enlarged for a network pretrained on large ones
IMAGENET_GREY = [0.449], [0.226]  # means over the channels of data.mean and data.std
PATIENTS = frozenset(("patient", "patientid", "subject", "subjectid", "person", "personid"))
"""Names of a patient column, lower case, without blanks or punctuation."""
PATIENT_IN_PATH = r"((?:[Pp]atient|[Pp]erson|[Ss]ubject|sub)[-_ ]?\d+)"
EPOCHS = (30, 200)
BATCH = (32, 256)


def own_images(folder: str | Path, labelling: Labelling = ONE_CLASS) -> tuple[Tree, list[str]]:
    """Settings by which `--data FOLDER` replaces a recipe's own images, and a note.

    Raises UserError if there is nothing to train on.
    """
    spec, _, train, has_val = _open_own(folder, labelling)
    fraction = 0.0 if has_val else VAL_FRACTION
    tree: Tree = {
        "data": {"root": None, "train": spec, "val": None, "val_fraction": fraction},
        "model": {"num_classes": None},
    }
    held = "" if has_val else f"; data.val_fraction={fraction} of each class is held out"
    classes = _classes(train)
    return tree, [
        f"--data {folder}: {len(train)} images of {classes} classes instead of the recipe's "
        f"own{held}"
    ]


def _open_own(
    folder: str | Path, labelling: Labelling = ONE_CLASS
) -> tuple[str, str, Examples, bool]:
    """The new data.train, its name, its training images, and whether it has validation images."""
    as_it_is = str(folder).startswith("builtin:") or is_url(str(folder))
    spec = str(folder) if as_it_is else str(Path(folder).expanduser().absolute())
    place = locate_images(spec)
    train = open_examples(spec, labelling=labelling, split="train")
    if train.labels.ndim == 1 and len(np.unique(train.labels)) < 2:
        raise UserError(
            f"{train.origin}: all images are of one class; give a folder with one folder per class"
        )
    if not isinstance(place, Path):
        return spec, Path(place.folder).name, train, is_remote_folder(spec)
    if not place.is_dir():
        return spec, place.stem, train, False
    return spec, place.name, train, find_part(place, "val") is not None


def suggest(folder: str | Path, options: Sequence[str] = ()) -> tuple[Tree, list[str]]:
    """A recipe's settings for the images in `folder`, and sentences that say why.

    `folder` is anything that data.train accepts; `options` are the command's -o, which some
    choices depend on. Raises UserError if there is nothing to train on.
    """
    spec, called, train, has_val = _open_own(folder, labelling_asked(options))
    classes = _classes(train)
    look = look_at(train, _asked("data.max_pixels", options, int) or MAX_PIXELS)
    name = readable(called) or "run"
    picks = [
        (
            {"name": name, "data": {"train": spec}},
            f"{len(train)} images of {classes} classes in {train.origin}",
        ),
        _validation(has_val, options),
        _group(train, options),
        _size(look, options),
        _channels(look, options),
        _intensity(look),
        _augment(look, train),
        _length(
            len(train) if has_val else round((1 - VAL_FRACTION) * len(train)),
            options,
        ),
    ]
    tree: Tree = {}
    for settings, _ in picks:
        tree = merge(tree, settings)
    return tree, [line for _, sentences in picks for line in sentences.splitlines()]


def labelling_asked(options: Sequence[str], file: Tree | None = None) -> Labelling:
    """How to read the user's labels, by the options and the recipe's `file`."""
    section = (file or {}).get("model")
    stored = section.get("task") if isinstance(section, dict) else None
    named = _asked("model.task", options, str) or stored
    # an unknown task is refused when the recipe is built
    task: Task = next((each for each in get_args(Task) if each == named), "multiclass")
    classes = _asked("data.classes", options, list)
    return Labelling(
        task=task,
        delimiter=_asked("data.delimiter", options, str),
        classes=None if classes is None else tuple(map(str, classes)),
    )


def _classes(train: Examples) -> int:
    return len(np.unique(train.labels)) if train.labels.ndim == 1 else train.num_classes


def _asked(key: str, options: Sequence[str], kind: type[T]) -> T | None:
    """The value of the last option for `key`; None if there is none of type `kind`."""
    parsed = map(parse_override, options)
    values = [value for path, value in parsed if ".".join(map(str, path)) == key]
    value = values[-1] if values else None
    if kind is float and isinstance(value, int):
        value = float(value)
    return value if isinstance(value, kind) else None


Pick = tuple[Tree, str]


def _validation(has_val: bool, options: Sequence[str]) -> Pick:
    asked = [_asked(f"data.{key}", options, str) for key in ("fold", "val")]
    if has_val or any(asked):
        return {}, ""
    return {"data": {"val_fraction": VAL_FRACTION}}, (
        f"there are no separate validation images: data.val_fraction={VAL_FRACTION} of each class "
        f"is held out"
    )


def _group(train: Examples, options: Sequence[str]) -> Pick:
    """Groups by patient if a column or the paths name patients and no option sets data.group."""
    if any(".".join(map(str, path)) == "data.group" for path, _ in map(parse_override, options)):
        return {}, ""
    column = next((h for h in train.columns if re.sub(r"[\W_]", "", h.lower()) in PATIENTS), None)
    try:
        groups = with_groups(train, column or PATIENT_IN_PATH).groups
    except UserError:  # not all images have a patient
        return {}, ""
    found = len(set([] if groups is None else groups))
    if not 1 < found < len(train):
        return {}, ""
    return {"data": {"group": column or PATIENT_IN_PATH}}, (
        f"{'column ' + column if column else 'the paths'} name{'s' if column else ''} {found} "
        f"patients: data.group={column or PATIENT_IN_PATH} keeps each one's images on one side; "
        f"data.group=null turns this off"
    )


def _size(look: Look, options: Sequence[str]) -> Pick:
    side = look.short_side
    name = _asked("model.name", options, str) or "densenet121"
    pretrained = _asked("model.pretrained", options, str)
    if side < SMALL and pretrained and "_" not in name:
        whole = {"image_size": ENLARGED, "evaluate": {"resize": ENLARGED}}
        return {"data": {**whole, "augment": {"crop": "none"}}}, (
            f"the short side is {side} pixels, too few for {name}, which downsamples by 32: "
            f"enlarged to data.image_size={ENLARGED}"
        )
    if side < SMALL:
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


def _channels(look: Look, options: Sequence[str]) -> Pick:
    if look.channels not in (1, 3):
        several = {"channels": look.channels, "mean": [0.5], "std": [0.5]}
        return {"data": several, "model": {"in_channels": look.channels}}, (
            f"the files have {look.channels} channels: data.channels={look.channels}"
        )
    if not look.grey:
        return {}, ""
    mean, std = IMAGENET_GREY if _asked("model.pretrained", options, str) else ([0.5], [0.5])
    grey = {"channels": 1, "mean": mean, "std": std}
    return {"data": grey, "model": {"in_channels": 1}}, (
        "the files are grey: data.channels=1 (to start from weights for colour images, set "
        "data.channels=3 and model.in_channels=3)"
    )


def _intensity(look: Look) -> Pick:
    if not look.deep:
        return {}, ""
    return {"data": {"intensity": "percentile"}}, (
        "the files hold more than 8 bits: data.intensity=percentile scales each image by its own "
        "values; data.intensity=full, or window with data.window=[CENTRE,WIDTH] (CT), keeps images "
        "comparable with one another"
    )


def _augment(look: Look, train: Examples) -> Pick:
    """Random augmentation, and a note on it."""
    small = look.short_side < SMALL
    characters = len(train.classes) >= CHARACTERS and all(
        len(name) == 1 for name in train.classes.values()
    )
    crop = "shifted by up to 4 pixels" if small else "cropped to 8 - 100 % of their area"
    if not characters and not look.colourless:
        return {}, (
            f"training mirrors images half of the time; they are {crop}: set "
            f"data.augment.flip=0 if left and right differ"
            + ("" if small else f", data.augment.crop_scale={GENTLE_CROP} if edges matter")
        )
    augment: Tree = {"flip": 0.0}
    what = "the images are grey, as X-rays are" if look.colourless else ""
    if look.colourless and not small:
        augment["crop_scale"] = GENTLE_CROP
        crop = f"cropped to no less than half of their area (data.augment.crop_scale={GENTLE_CROP})"
    if characters:
        what = f"the {len(train.classes)} classes look like characters"
    return {"data": {"augment": augment}}, (
        f"{what}: training does not mirror them (data.augment.flip=0); they are {crop}"
    )


def _length(images: int, options: Sequence[str]) -> Pick:
    """Batch size and epochs by the number of training images; warm-up is a 20th of the epochs."""
    batch = min(max(2 ** int(math.log2(max(images, 1) / 50 + 1)), BATCH[0]), BATCH[1])
    tens = round(STEPS / math.ceil(images / batch) / 10)
    epochs = min(max(10 * tens, EPOCHS[0]), EPOCHS[1])
    asked = _asked("loop.epochs", options, int)
    if _asked("model.pretrained", options, str):
        wanted: Tree = {key: _asked(key, options, kind) for key, kind in ASKED.items()}
        settings, sentences = tuning_settings(images, batch, epochs, wanted)
        return merge({"data": {"batch_size": batch}}, settings), (
            f"{images} training images: data.batch_size={batch}\n" + "\n".join(sentences)
        )
    run = epochs if asked is None else asked
    optim = {"schedule": "cosine", "warmup_epochs": max(run, 0) // 20, "nesterov": True}
    return {"data": {"batch_size": batch}, "optim": optim, "loop": {"epochs": epochs}}, (
        f"{images} training images: data.batch_size={batch}, loop.epochs={run}, a cosine "
        f"schedule; if images are few, start from ImageNet's weights: model.pretrained=torchvision"
    )
