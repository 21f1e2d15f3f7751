"""Checks of a list or folder before training or evaluation.

Labels out of range, unreadable files, files listed twice or with two labels, classes without
images, imbalanced classes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from densekit.config import UserError
from densekit.data.bit_depth import dark_files
from densekit.data.config import MAX_PIXELS, DataConfig
from densekit.data.decode import EIGHT_BITS, UnreadableImage, decode
from densekit.data.intensity import Intensity
from densekit.data.listing import Examples, readable
from densekit.data.paths import Paths
from densekit.data.shards.examples import read_together

NAMED = 5  # examples in a message
UNEVEN = 4  # the largest class has this many times the images of the smallest
MOST = 1.5  # and this many times the average
FEW = 10  # images per class; with fewer, class sizes mean nothing


def check_split(
    train: Examples,
    val: Examples,
    num_classes: int | None,
    config: DataConfig,
) -> tuple[np.ndarray, list[str]]:
    """Runs `check_examples` on both and checks that they share no file -> training images per
    class, int64 [K], and warnings. K is `num_classes`, or as many as the lists have. With
    data.on_bad_image=skip, training files may be unreadable. Raises UserError.
    """
    num_classes = num_classes or max(train.num_classes, val.num_classes)
    sample, channels, max_pixels = config.check_files, config.channels, config.max_pixels
    scaling = config.scaling
    may_skip = config.max_bad_images if config.on_bad_image == "skip" else 0
    files = file_keys(train.paths), file_keys(val.paths)
    counts, warnings = check_examples(
        train, num_classes, sample, channels, max_pixels, files[0], may_skip, scaling
    )
    _, of_val = check_examples(
        val, num_classes, sample, channels, max_pixels, files[1], intensity=scaling
    )
    in_order = np.sort(files[0])
    place = np.searchsorted(in_order, files[1]).clip(max=len(in_order) - 1)
    shared = np.flatnonzero(in_order[place] == files[1])
    if len(shared):
        index = int(shared[0])
        in_train = int(np.flatnonzero(files[0] == files[1][index])[0])
        raise UserError(
            f"{len(shared)} files are in both the training and the validation images, such as "
            f"{val.where(index)}: {readable(val.paths[index])}, which is "
            f"{readable(train.paths[in_train])} there: the accuracy would mean "
            f"nothing; remove them from one"
        )
    return counts, [*warnings, *(f"validation: {text}" for text in of_val)]


def check_examples(
    examples: Examples,
    num_classes: int,
    sample: int,
    channels: int,
    max_pixels: int = MAX_PIXELS,
    files: np.ndarray | None = None,
    may_skip: int = 0,
    intensity: Intensity = EIGHT_BITS,
) -> tuple[np.ndarray, list[str]]:
    """Checks labels and a sample of the files -> images per class, int64 [K], and warnings.

    `files` are their `file_keys`, if known. Raises UserError, with file and line, for a label out
    of range, a file with two labels, and unreadable files among `sample` of them, spread over all.
    """
    if examples.labels.ndim == 2 and examples.num_classes > num_classes:
        raise UserError(
            f"{examples.origin}: has {examples.num_classes} classes, but "
            f"model.num_classes={num_classes}; leave model.num_classes out, or choose some of the "
            f"classes with data.classes"
        )
    several = examples.labels.ndim == 2
    outside = np.flatnonzero(examples.labels >= num_classes) if not several else np.empty(0, int)
    if len(outside):
        worst = int(examples.labels.max())
        raise UserError(
            f"{examples.where(outside[0])}: label {examples.labels[outside[0]]}, but "
            f"model.num_classes={num_classes} has labels 0 to {num_classes - 1}; "
            f"set model.num_classes={worst + 1} or correct the list"
        )
    files = file_keys(examples.paths) if files is None else files
    warnings = [*examples.notes, *_repeats(examples, files)]
    looked = spread_sources(examples, sample)
    warnings += _check_files(examples, looked, channels, max_pixels, may_skip, intensity)
    warnings += dark_files(list(looked.values()), intensity)
    counts, of_classes = class_notes(examples, num_classes)
    return counts, [*warnings, *of_classes]


def class_notes(examples: Examples, num_classes: int) -> tuple[np.ndarray, list[str]]:
    """Images of each class, int64 [K], and warnings on empty or imbalanced classes."""
    if examples.labels.ndim == 2:
        return (examples.labels == 1).sum(0), _one_sided(examples)
    known = examples.labels[examples.labels < num_classes]
    counts = np.bincount(known, minlength=num_classes)
    empty = np.flatnonzero(counts == 0).tolist()
    notes = []
    if empty:
        shown = named_labels(examples, empty)
        notes.append(f"{len(empty)} of {num_classes} classes have no images: {shown}")
    return counts, [*notes, *_uneven(examples, counts)]


def _one_sided(examples: Examples) -> list[str]:
    """Multilabel: classes that are present in all images or in none, and unknown labels."""
    there, absent = (examples.labels == 1).sum(0), (examples.labels == 0).sum(0)
    found = []
    for what, counts in (("present", there), ("absent", absent)):
        none = np.flatnonzero(counts == 0).tolist()
        if none:
            shown = named_labels(examples, none)
            found.append(f"{len(none)} of {len(there)} classes are {what} in no image: {shown}")
    unknown = np.flatnonzero((examples.labels < 0).any(0)).tolist()
    if unknown:
        share = (examples.labels < 0).mean()
        shown = named_labels(examples, unknown)
        found.append(f"{share:.1%} of the labels are unknown and left out, of: {shown}")
    return found


def are_uneven(counts: np.ndarray) -> bool:
    """Whether always predicting one class would look accurate, given images per class."""
    present = counts[counts > 0]
    largest, total = int(counts.max()), int(counts.sum())
    even = largest < UNEVEN * present.min() or largest * len(present) < MOST * total
    return not even and total >= FEW * len(present)


def _uneven(examples: Examples, counts: np.ndarray) -> list[str]:
    if not counts.any() or not are_uneven(counts):
        return []
    present, largest, total = counts[counts > 0], int(counts.max()), int(counts.sum())
    names = [
        named_labels(examples, [label])
        for label in (int(counts.argmax()), int(np.flatnonzero(counts == present.min())[0]))
    ]
    return [
        f"the classes are imbalanced, from {largest} images of {names[0]} to {present.min()} of "
        f"{names[1]}: always predicting {names[0]} gives a top-1 of {largest / total:.2f}; look at "
        f"balanced_accuracy, by which loop.monitor=auto chooses the best epoch"
    ]


def file_keys(paths: Sequence[str]) -> np.ndarray:
    """A hash of the file that each path leads to, int64 [n]: equal for `./a/1.jpg`, `a/1.jpg` and
    links to either; valid in this process only.
    A folder is resolved and listed once, and only its links are followed, so a million paths take
    seconds. Hard links count as different files. Two of a million files collide once in 10
    million runs.
    """
    folders: dict[bytes, tuple[int, set[bytes]]] = {}

    def key(path: bytes) -> int:
        folder, name = _split(path)
        known = folders.get(folder)
        if known is None:
            known = folders[folder] = hash(os.path.realpath(folder)), _links(folder)
        place, links = known
        if links and name in links:
            folder, name = os.path.split(os.path.realpath(path))
            place = hash(folder)
        return hash((place, name))

    return np.fromiter(map(key, Paths.of(paths).encoded()), np.int64, len(paths))


def _split(path: bytes) -> tuple[bytes, bytes]:
    """Folder (with its slash) and name; four times as fast as os.path.split."""
    if os.altsep:
        path = path.replace(os.altsep.encode(), os.sep.encode())
    cut = path.rfind(os.sep.encode()) + 1
    return path[:cut], path[cut:]


def _links(folder: bytes) -> set[bytes]:
    try:
        with os.scandir(folder or b".") as entries:
            return {entry.name for entry in entries if entry.is_symlink()}
    except OSError:
        return set()  # unreadable: reported when its files are read


def _repeats(examples: Examples, files: np.ndarray) -> list[str]:
    """Files that are listed more than once. Raises UserError for one with two labels."""
    in_order = np.sort(files)
    if not (in_order[1:] == in_order[:-1]).any():
        return []
    _, first, file = np.unique(files, return_index=True, return_inverse=True)
    again = np.flatnonzero(first[file] != np.arange(len(files))).tolist()
    for index in again:
        before = int(first[file[index]])
        if not np.array_equal(examples.labels[before], examples.labels[index]):
            labels = [_labels_of(examples, i) for i in (index, before)]
            raise UserError(
                f"{examples.where(index)}: {readable(examples.paths[index])} has label "
                f"{labels[0]}, but at {examples.where(before)} label {labels[1]}; correct the "
                f"list, or the links"
            )
    return [
        f"{readable(examples.origin)}: {len(again)} of {len(files)} images are listed more than "
        f"once, such as {readable(examples.paths[again[0]])}, and count each time"
    ]


def _labels_of(examples: Examples, index: int) -> str:
    own = examples.labels[index]
    labels = [int(own)] if own.ndim == 0 else np.flatnonzero(own == 1).tolist()
    return named_labels(examples, labels) or "none"


def named_labels(examples: Examples, labels: Sequence[int]) -> str:
    """`cat, dog, 7, ...`."""
    more = ", ..." if len(labels) > NAMED else ""
    return ", ".join(examples.classes.get(label, str(label)) for label in labels[:NAMED]) + more


def spread_sources(examples: Examples, sample: int) -> dict[int, Any]:
    """What `decode` takes, or an error, by position, for `sample` images spread over all."""
    spread = np.unique(np.linspace(0, len(examples) - 1, min(sample, len(examples))).astype(int))

    def looked() -> dict[int, Any]:
        return {index: _source(examples, index) for index in spread.tolist()}

    return read_together([examples], looked)


def _source(examples: Examples, index: int) -> Any:
    try:
        return examples.image(index)
    except UnreadableImage as error:
        return error


def _check_files(
    examples: Examples,
    looked: Mapping[int, Any],
    channels: int,
    max_pixels: int,
    may_skip: int,
    intensity: Intensity,
) -> list[str]:
    faults = (
        _fault(source, channels, max_pixels, intensity, examples.where(index))
        for index, source in looked.items()
    )
    bad = [fault for fault in faults if fault]
    if not bad:
        return []
    shown = "\n  ".join(bad[:NAMED])
    text = f"{len(bad)} of {len(looked)} files looked at cannot be read:\n  {shown}"
    if len(bad) <= may_skip:
        return [f"{text}\nthey are left out (data.on_bad_image=skip)"]
    raise UserError(
        f"{text}\npaths are relative to {examples.root}: set data.root if the images are "
        f"elsewhere; otherwise repair or remove the files, or leave out those of training with "
        f"data.on_bad_image=skip"
    )


def _fault(
    source: Any, channels: int, max_pixels: int, intensity: Intensity, place: str
) -> str | None:
    """Why an image cannot be read, and where; None if it can."""
    try:
        if isinstance(source, UnreadableImage):
            raise source
        decode(source, channels, max_pixels, intensity)
    except UnreadableImage as error:
        return str(error.at(place))
    return None
