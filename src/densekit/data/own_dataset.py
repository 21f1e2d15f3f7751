"""Training on the caller's own torch Dataset.

Its items are pairs of an image, as `predict` accepts, and a label. Random augmentation belongs in
the recipe (data.augment), where it depends on seed, epoch and index alone; so an item must be the
same each time it is read, which is checked on some of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from PIL import Image

from densekit.config import UserError
from densekit.data.classes import Numbering
from densekit.data.config import DataConfig, Task
from densekit.data.decode import UnreadableImage
from densekit.data.holdout import Sides, divide
from densekit.data.listing import Examples
from densekit.data.multilabel import widen
from densekit.data.splits import match_labels
from densekit.progress import bar

TRIED = 64  # items that are read twice, and whose pixels go into the digest
EXPECTED = (
    "an image is a PIL image or a uint8 array or tensor [H, W] or [H, W, C] in RGB order (or of "
    "other values, with data.intensity), without ToTensor and Normalize: the recipe's data "
    "section does that"
)


class MapStyle(Protocol):
    """A torch map-style Dataset."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True, eq=False)
class DatasetExamples(Examples):
    """Items of a Dataset."""

    why_not_cached: ClassVar[str | None] = "the images are those of a program's own Dataset"

    dataset: MapStyle | None = None
    items: np.ndarray | None = None
    """int64 [n]: their indices in it."""

    def image(self, index: int, whole: bool = False) -> Image.Image | np.ndarray:
        """A PIL image or an array. Raises UnreadableImage for anything else."""
        assert self.dataset is not None
        assert self.items is not None
        place = self.paths[index]
        try:
            return _as_image(_item(self.dataset, int(self.items[index]), place)[0], place)
        except UserError as error:
            raise UnreadableImage(place, str(error).removeprefix(f"{place}: ")) from error

    def where(self, index: int) -> str:
        """`train[17]`."""
        return self.paths[index]

    def subset(self, indices: Sequence[int] | np.ndarray) -> Examples:
        """As Examples.subset."""
        assert self.items is not None
        whole = super().subset(indices)
        assert isinstance(whole, DatasetExamples)
        return replace(whole, items=self.items[np.asarray(indices, np.int64)])

    @cached_property
    def _content(self) -> str:
        """sha256 of the pixels of TRIED items."""
        hashed = hashlib.sha256()
        for index in _spread(len(self)):
            pixels = np.ascontiguousarray(np.asarray(self.image(index)))
            hashed.update(f"{pixels.dtype} {pixels.shape}".encode() + pixels.tobytes())
        return hashed.hexdigest()

    def digest(self) -> str:
        """sha256 of every label and of the pixels of TRIED items."""
        return hashlib.sha256(f"{super().digest()} {self._content}".encode()).hexdigest()


def open_datasets(
    train: MapStyle,
    val: MapStyle | None,
    config: DataConfig,
    task: Task,
    num_classes: int | None,
    known: Sides | None = None,
) -> tuple[Examples, Examples]:
    """As `open_split`, from Datasets; without `val`, data.val_fraction is held out.

    Raises UserError, also if the recipe itself names images.
    """
    named = [key for key in ("root", "train", "val") if getattr(config, key) is not None]
    if named:
        raise UserError(
            f"data.{named[0]}={getattr(config, named[0])}: the images are those of train=Dataset; "
            f"leave it out, or add {', '.join(f'data.{key}=null' for key in named)!r}"
        )
    if config.group is not None:
        raise UserError(
            f"data.group={config.group} needs a list or paths, which a Dataset does not have"
        )
    if config.relabel:
        raise UserError("data.relabel=true is for lists; number the Dataset's own labels from 0")
    own = of_dataset(train, task, "train")
    if val is None:
        if not config.val_fraction and config.fold is None:
            raise UserError(
                "no validation images: give val=Dataset, or hold some out with "
                "data.val_fraction=0.1"
            )
        return divide(widen(own, num_classes or 0), config, known)
    if config.val_fraction or config.fold is not None:
        raise UserError(
            f"{config.held_out} holds out training images, but there is also val=Dataset; leave one"
        )
    other: Examples = of_dataset(val, task, "val")
    if own.classes and other.classes:
        other = match_labels(other, Numbering.of_examples(own))
    count = num_classes or max(own.num_classes, other.num_classes)
    return widen(own, count), widen(other, count)


def of_dataset(dataset: MapStyle, task: Task, name: str) -> DatasetExamples:
    """All of a Dataset's items; `name` is the caller's argument, train or val.

    Labels come from its `targets`, as torchvision's data sets have, else from reading each item;
    names from its `classes`, if it has any. Raises UserError if it is not such a Dataset.
    """
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise UserError(
            f"{name}: expected a map-style Dataset, with __len__ and __getitem__, got "
            f"{type(dataset).__name__}; turn an iterable Dataset into a list of its items"
        )
    count = len(dataset)
    if not count:
        raise UserError(f"{name}: has no images")
    _check_items(dataset, name)
    labels = _labels(list(_targets(dataset, name)), task, name)
    kind = type(dataset).__name__
    note = (
        f"{name}: {count:,} images of a {kind}; a resumed run checks that their labels, and the "
        f"pixels of {min(count, TRIED)} of them, are the same"
    )
    return DatasetExamples(
        paths=[f"{name}[{i}]" for i in range(count)],
        labels=labels,
        classes=_class_names(dataset, task),
        root="",
        origin=f"{name} ({kind})",
        notes=(note,),
        dataset=dataset,
        items=np.arange(count),
    )


def _check_items(dataset: MapStyle, name: str) -> None:
    """Raises UserError for items that are not pairs or images, or change when read again."""
    for index in _spread(len(dataset)):
        place = f"{name}[{index}]"
        first, again = (
            np.asarray(_as_image(_item(dataset, index, place)[0], place)) for _ in range(2)
        )
        if first.shape != again.shape or not np.array_equal(first, again):
            raise UserError(
                f"{place}: is a different image each time it is read, so no run could be "
                f"repeated or resumed; remove random transforms from the Dataset: use data.augment"
            )


def _item(dataset: MapStyle, index: int, place: str) -> tuple[Any, Any]:
    item = dataset[index]
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise UserError(
            f"{place}: expected a pair of an image and a label, got {type(item).__name__}"
            + (f" of {len(item)}" if isinstance(item, (tuple, list, dict)) else "")
        )
    return item[0], item[1]


def _as_image(image: Any, place: str) -> Image.Image | np.ndarray:
    if isinstance(image, torch.Tensor):
        image = image.numpy(force=True)
    if isinstance(image, Image.Image):
        return image
    if not isinstance(image, np.ndarray):
        raise UserError(f"{place}: {EXPECTED}; got {type(image).__name__}")
    shape = list(image.shape)
    if image.ndim == 3 and image.shape[0] in (1, 3) and image.shape[2] not in (1, 3, 4):
        raise UserError(f"{place}: {EXPECTED}; got {image.dtype} {shape}: image.permute(1, 2, 0)?")
    if image.ndim not in (2, 3):
        raise UserError(f"{place}: {EXPECTED}; got {image.dtype} {shape}")
    return image


def _targets(dataset: MapStyle, name: str) -> Iterator[Any]:
    """Each item's label."""
    known = getattr(dataset, "targets", None)
    if known is not None and len(known) == len(dataset):
        yield from known
        return
    for index in bar(range(len(dataset)), len(dataset), f"labels of {name}"):
        yield _item(dataset, index, f"{name}[{index}]")[1]


def _labels(targets: list[Any], task: Task, name: str) -> np.ndarray:
    """int64 [n]; of a multilabel or binary task int8 [n, K]. Raises UserError."""
    try:
        found = np.array([np.asarray(target) for target in targets])
        whole = found.astype(np.int64)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: its labels are not numbers of one shape: {error}") from error
    if not np.array_equal(whole, found):
        raise UserError(f"{name}: its labels are not whole numbers, such as {found.flat[0]!r}")
    if task == "multiclass":
        return _one_class(whole.reshape(len(whole), -1), name)
    whole = whole[:, None] if whole.ndim == 1 else whole
    if task == "binary" and whole.shape[1:] != (1,):
        raise UserError(f"{name}: model.task=binary takes one label per image, 0 or 1")
    if whole.ndim != 2 or not np.isin(whole, (-1, 0, 1)).all():
        raise UserError(
            f"{name}: model.task={task} takes a label for each class of an image: 1 present, 0 "
            f"absent, -1 unknown"
        )
    return whole.astype(np.int8)


def _one_class(labels: np.ndarray, name: str) -> np.ndarray:
    if labels.shape[1] != 1:
        raise UserError(
            f"{name}: {labels.shape[1]} labels per image, which needs model.task=multilabel"
        )
    if (labels < 0).any():
        raise UserError(f"{name}[{int((labels < 0).argmax())}]: a negative label")
    return labels[:, 0]


def _class_names(dataset: MapStyle, task: Task) -> dict[int, str]:
    names = [str(each) for each in getattr(dataset, "classes", None) or ()]
    if task == "binary" and len(names) == 2:  # negative and positive
        names = names[1:]
    return dict(enumerate(names))


def _spread(count: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, min(count, TRIED)).astype(int)).tolist()
