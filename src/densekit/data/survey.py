"""`densekit data check`: decodes every image; reports unreadable files, duplicates, sizes, classes.

`checks` samples the files before a run; this reads all of a new data set.
Two files are duplicates if their decoded pixels are equal, whatever their names.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from densekit import distributed
from densekit.config import Section
from densekit.data.bit_depth import SAMPLE, dark_files
from densekit.data.checks import class_notes, named_labels, spread_sources
from densekit.data.config import DataConfig, Task
from densekit.data.decode import UnreadableImage, content_of, open_image
from densekit.data.listing import Examples, readable
from densekit.data.multilabel import Labelling
from densekit.data.shards.examples import read_together
from densekit.data.splits import open_examples, open_split
from densekit.progress import bar

AT_A_TIME = 64  # images that a thread decodes at a time


class ImagePlace(Section):
    """An image of a data set."""

    split: str
    """train or val."""
    place: str
    """The list's file and line, or the file itself."""
    file: str
    label: str
    """Names of its classes, or their numbers."""


class Fault(Section):
    """An image that cannot be used."""

    image: ImagePlace
    reason: str


class Copies(Section):
    """Images with the same pixels."""

    images: tuple[ImagePlace, ...]


class ClassCount(Section):
    """Images of a class."""

    label: int
    name: str
    train: int
    val: int


class PixelRange(Section):
    """Over all images that can be read, in pixels."""

    smallest: int
    median: float
    largest: int


class Survey(Section):
    """What `densekit data check` found."""

    train: int
    """Images."""
    val: int
    unreadable: tuple[Fault, ...]
    mislabelled: tuple[Fault, ...]
    """Labels that are not classes of the network."""
    leaked: tuple[Copies, ...]
    """Training images that are also validation images."""
    contradictory: tuple[Copies, ...]
    """Copies of an image with different labels."""
    repeated: tuple[Copies, ...]
    """All other duplicates; each copy counts."""
    classes: tuple[ClassCount, ...]
    width: PixelRange | None
    height: PixelRange | None
    short_side: PixelRange | None
    enlarged: int
    """Images whose short side is less than data.image_size."""
    file_bytes: int
    """Total size of the readable files."""
    notes: tuple[str, ...]
    """Observations that are not errors."""
    seconds: float

    @property
    def is_wrong(self) -> bool:
        """Whether anything would stop a run or invalidate its accuracy."""
        return bool(self.unreadable or self.mislabelled or self.leaked or self.contradictory)


class Decoded(NamedTuple):
    """What one file decodes to."""

    width: int
    height: int
    file_bytes: int
    digest: bytes
    """sha256 of the pixels."""


def open_all(config: DataConfig, task: Task) -> tuple[Examples, Examples]:
    """Training and validation images; if none are held out yet, all of them and none.

    Raises UserError.
    """
    if not config.val_fraction:
        return open_split(config, task)
    spec = config.train or config.root
    assert spec is not None  # given by --data
    train = open_examples(spec, config.root, Labelling.of(config, task), "train")
    return train, train.subset([])


def survey(
    train: Examples,
    val: Examples,
    config: DataConfig,
    num_classes: int | None = None,
    threads: int | None = None,
) -> Survey:
    """Decodes all images in threads and compares them. Bad files are reported, not raised."""
    began = time.monotonic()
    parts = {"train": train, "val": val}
    as_stored = [(split, i) for split, part in parts.items() for i in part.as_stored().tolist()]

    def read() -> list[Decoded | str]:
        return list(bar(_decoded(parts, as_stored, config, threads), len(as_stored), "decoding"))

    found = sorted(zip(as_stored, read_together([train, val], read), strict=True), key=_position)
    decoded = {key: one for key, one in found if isinstance(one, Decoded)}
    faults = [
        Fault(image=_place(parts, key), reason=one) for key, one in found if isinstance(one, str)
    ]
    leaked, unlike, repeated = _sorted_copies(parts, decoded)
    sides = np.array([(one.width, one.height) for one in decoded.values()], np.int64).reshape(-1, 2)
    short = sides.min(1, initial=np.iinfo(np.int64).max)
    several = train.labels.ndim == 2  # open_split gives both the same K
    classes = train.num_classes if several or num_classes is None else num_classes
    return Survey(
        train=len(train),
        val=len(val),
        unreadable=tuple(faults),
        mislabelled=tuple(_mislabelled(parts, classes)),
        leaked=_named(parts, leaked),
        contradictory=_named(parts, unlike),
        repeated=_named(parts, repeated),
        classes=_classes(train, val, classes),
        width=_range(sides[:, 0]),
        height=_range(sides[:, 1]),
        short_side=_range(short),
        enlarged=int((short < config.image_size).sum()),
        file_bytes=sum(one.file_bytes for one in decoded.values()),
        notes=(*_notes(train, val, classes), *_dark(train, val, config)),
        seconds=time.monotonic() - began,
    )


# Decoding -----------------------------------------------------------------------------------

Item = tuple[str, int]
"""(split, index in its Examples)."""


def _decoded(
    parts: dict[str, Examples], keys: Sequence[Item], config: DataConfig, threads: int | None
) -> Iterator[Decoded | str]:
    """For each key, in order: what its file decodes to, or why it cannot be read.

    Threads, not processes: decoders release the GIL, and a file costs milliseconds.
    """

    def some(start: int) -> list[Decoded | str]:
        chunk = keys[start : start + AT_A_TIME]
        return [_decode(parts[split], index, config) for split, index in chunk]

    pool = ThreadPoolExecutor(threads or distributed.cores())
    try:
        chunks = pool.map(some, range(0, len(keys), AT_A_TIME))
        yield from itertools.chain.from_iterable(chunks)
    finally:
        pool.shutdown(cancel_futures=True)


def _decode(examples: Examples, index: int, config: DataConfig) -> Decoded | str:
    try:
        content = content_of(examples.image(index, whole=True)).content
        image = open_image(content, config.channels, config.max_pixels, config.scaling)
        pixels = image.pixels().permute(1, 2, 0).numpy()
    except UnreadableImage as error:
        return error.reason
    hashed = hashlib.sha256(f"{pixels.dtype} {pixels.shape}".encode())
    hashed.update(np.ascontiguousarray(pixels).data)
    return Decoded(image.width, image.height, len(content), hashed.digest())


def _position(found: tuple[Item, Decoded | str]) -> tuple[bool, int]:
    (split, index), _ = found
    return split == "val", index


# Comparing ----------------------------------------------------------------------------------


def _sorted_copies(
    parts: dict[str, Examples], decoded: dict[Item, Decoded]
) -> tuple[list[list[Item]], list[list[Item]], list[list[Item]]]:
    """Groups of images with the same pixels: in both splits, with different labels, the rest.

    A group may be in the first two at once.
    """
    groups: dict[bytes, list[Item]] = {}
    for key, one in decoded.items():
        groups.setdefault(one.digest, []).append(key)
    leaked, unlike, repeated = [], [], []
    for group in groups.values():
        if len(group) == 1:
            continue
        both = len({split for split, _ in group}) == 2
        answers = len({parts[split].labels[index].tobytes() for split, index in group})
        leaked += [group] * both
        unlike += [group] * (answers > 1)
        repeated += [group] * (not both and answers == 1)
    return leaked, unlike, repeated


def _mislabelled(parts: dict[str, Examples], num_classes: int) -> Iterator[Fault]:
    for split, part in parts.items():
        if part.labels.ndim == 1:
            for index in np.flatnonzero(part.labels >= num_classes).tolist():
                reason = f"the network's {num_classes} classes are 0 to {num_classes - 1}"
                yield Fault(image=_place(parts, (split, index)), reason=reason)


def _place(parts: dict[str, Examples], key: Item) -> ImagePlace:
    split, index = key
    part = parts[split]
    own = part.labels[index]
    labels = [int(own)] if own.ndim == 0 else np.flatnonzero(own == 1).tolist()
    return ImagePlace(
        split=split,
        place=part.where(index),
        file=readable(part.paths[index]),
        label=named_labels(part, labels) or "none",
    )


def _named(parts: dict[str, Examples], groups: Sequence[Sequence[Item]]) -> tuple[Copies, ...]:
    return tuple(Copies(images=tuple(_place(parts, key) for key in group)) for group in groups)


def _classes(train: Examples, val: Examples, num_classes: int) -> tuple[ClassCount, ...]:
    in_train, in_val = (class_notes(part, num_classes)[0] for part in (train, val))
    names = {**val.classes, **train.classes}
    return tuple(
        ClassCount(label=k, name=names.get(k, str(k)), train=int(in_train[k]), val=int(in_val[k]))
        for k in range(num_classes)
    )


def _range(values: np.ndarray) -> PixelRange | None:
    if not len(values):
        return None
    return PixelRange(
        smallest=int(values.min()), median=float(np.median(values)), largest=int(values.max())
    )


def _dark(train: Examples, val: Examples, config: DataConfig) -> list[str]:
    looked = [*spread_sources(train, SAMPLE).values(), *spread_sources(val, SAMPLE).values()]
    return dark_files(looked, config.scaling, len(looked))


def _notes(train: Examples, val: Examples, num_classes: int) -> list[str]:
    """Observations on training and validation images."""
    if not len(val):
        held = "no validation images yet: copies may fall on both sides when some are held out"
        return [*train.notes, *class_notes(train, num_classes)[1], held]
    of_train = [*train.notes, *class_notes(train, num_classes)[1]]
    of_val = [*val.notes, *class_notes(val, num_classes)[1]]
    return [*of_train, *(f"validation: {text}" for text in of_val)]
