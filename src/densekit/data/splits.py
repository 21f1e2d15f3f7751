"""From what `data.root`, `data.train` and `data.val` say to the examples they mean.

A source is a list file, a folder of class folders, `builtin:NAME`, or the folder of a whole data
set, which holds both splits as `train_list.txt` and `val_list.txt` or as `train/` and `val/`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from densekit.config import UserError, nearest
from densekit.data import builtin
from densekit.data.config import DataConfig
from densekit.data.listing import Examples, class_folders, read_folder, read_list
from densekit.data.transforms import UnreadableImage, decode

Split = Literal["train", "val"]
SUBFOLDERS: dict[Split, tuple[str, ...]] = {
    "train": ("train",), "val": ("val", "valid", "validation")
}  # fmt: skip
NAMED = 5  # examples in a message


def open_examples(
    spec: str,
    root: str | None = None,
    delimiter: str | None = None,
    split: Split = "val",
    known: Mapping[int, str] | None = None,
) -> Examples:
    """The examples that `spec` means, of `split` where it is a whole data set.

    A relative `spec` is looked up under `root`, then in the current folder. Paths in a list file
    that `spec` names start from `root`, else from the file's folder. `known` are the classes'
    names where a model or the training images fix them: class folders get the labels of their
    names. Raises UserError.
    """
    return _open(locate(spec, root), root, delimiter, split, known)


def open_split(config: DataConfig) -> tuple[Examples, Examples]:
    """Training and validation examples. Raises UserError."""
    if config.train is not None:
        place = locate(config.train, config.root)
    elif config.root is not None:
        place = locate(config.root)
    else:
        raise UserError(
            "no training images: set data.train to a list file, a folder with one folder per "
            "class, or builtin:mnist5k; or data.root to a folder with train_list.txt and "
            "val_list.txt or with train/ and val/"
        )
    train = _open(place, config.root, config.delimiter, "train", None)
    own_val = find_part(place, "val") if place.is_dir() else None
    if config.val_fraction and (config.val is not None or own_val is not None):
        has = f"data.val={config.val}" if config.val is not None else f"{own_val}"
        raise UserError(
            f"data.val_fraction={config.val_fraction} holds out training images, but there is "
            f"also {has}; set data.val_fraction=0 to use that"
        )
    if config.val is not None:
        where = locate(config.val, config.root)
    elif own_val is not None:
        where = place
    elif config.val_fraction and config.relabel:
        raise UserError("data.relabel=true needs a validation list: set data.val")
    elif config.val_fraction:
        return hold_out(train, config.val_fraction)
    else:
        raise UserError(
            f"no validation images for {train.origin}: set data.val, or hold some out with "
            f"data.val_fraction=0.1"
        )
    val = _open(where, config.root, config.delimiter, "val", train.classes)
    _check_names(train, val)
    if config.relabel:
        new = {old: label for label, old in enumerate(np.unique(train.labels).tolist())}
        return train.relabelled(new), val.relabelled(new)
    return train, val


def open_val(config: DataConfig) -> Examples:
    """The validation examples of `open_split`, where the training images may not be there.

    A list of its own that is not relabelled needs nothing of theirs. Raises UserError.
    """
    if config.val is not None and not config.relabel:
        place = locate(config.val, config.root)
        if place.is_file():
            return _open(place, config.root, config.delimiter, "val", None)
    return open_split(config)[1]


def locate(spec: str, root: str | None = None) -> Path:
    """The file or folder that `spec` means; a builtin is written first. Raises UserError."""
    if spec.startswith("builtin:"):
        name = spec.removeprefix("builtin:")
        if name not in builtin.WRITERS:
            raise UserError(f"{spec}: there is no such builtin{nearest(name, builtin.WRITERS)}")
        return builtin.WRITERS[name](Path(root or f"data/{name}").expanduser())
    path = Path(spec).expanduser()
    tried = [Path(root).expanduser() / path, path] if root and not path.is_absolute() else [path]
    for candidate in tried:
        if candidate.exists():
            return candidate
    raise UserError(f"there is no file or folder {' nor '.join(map(str, tried))}")


def find_part(folder: Path, split: Split) -> Path | None:
    """`train_list.txt` or `train/` of a whole data set's folder; None if it has neither.

    A subfolder is a split only if it holds class folders itself: a class may be called "train".
    """
    file = folder / f"{split}_list.txt"
    if file.is_file():
        return file
    for name in SUBFOLDERS[split]:
        if (folder / name).is_dir() and class_folders(folder / name):
            return folder / name
    return None


def _open(
    place: Path,
    root: str | None,
    delimiter: str | None,
    split: Split,
    known: Mapping[int, str] | None,
) -> Examples:
    if place.is_file():
        start = Path(root).expanduser() if root is not None else place.parent
        return read_list(place, start, delimiter)
    part = find_part(place, split)
    if part is None:
        other = find_part(place, "val" if split == "train" else "train")
        if other is not None:
            raise UserError(
                f"{place}: has {other.name} but neither {split}_list.txt nor {split}/ with class "
                f"folders; add one, or name the list file or folder itself"
            )
        return read_folder(place, known)
    return read_list(part, place, delimiter) if part.is_file() else read_folder(part, known)


def _check_names(train: Examples, val: Examples) -> None:
    """A label must mean the same class in both."""
    for label in sorted(train.classes.keys() & val.classes.keys()):
        if train.classes[label] != val.classes[label]:
            raise UserError(
                f"label {label} is {train.classes[label]!r} in {train.origin} and "
                f"{val.classes[label]!r} in {val.origin}; make their classes.txt agree"
            )


def hold_out(examples: Examples, fraction: float) -> tuple[Examples, Examples]:
    """Splits off `fraction` of each class, -> (the rest, the share). Raises UserError.

    Which files go is decided by a hash of their relative paths: neither the order of the list nor
    the place of the data changes it, and all lines of one file go the same way. A class of two
    files or more keeps and gives at least one.
    """
    by_class: dict[int, set[str]] = {}
    names = [examples.relative(i) for i in range(len(examples))]
    for name, label in zip(names, examples.labels.tolist(), strict=True):
        by_class.setdefault(label, set()).add(name)
    held: set[str] = set()
    for files in by_class.values():
        share = min(max(round(fraction * len(files)), 1), len(files) - 1)
        held.update(sorted(files, key=_hash)[:share])
    is_held = np.array([name in held for name in names])
    if not is_held.any():
        raise UserError(
            f"data.val_fraction={fraction}: {examples.origin} has no class of two images or more, "
            f"so none can be held out; add images or set data.val"
        )
    return examples.subset(np.flatnonzero(~is_held)), examples.subset(np.flatnonzero(is_held))


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()


def check_examples(
    examples: Examples, num_classes: int, sample: int, channels: int
) -> tuple[np.ndarray, list[str]]:
    """Looks for what would stop or spoil a run later -> images per class, warnings.

    Raises UserError, with file and line, for a label that is no class and for files among `sample`
    of them, spread over all, that cannot be read.
    """
    outside = np.flatnonzero(examples.labels >= num_classes)
    if len(outside):
        worst = int(examples.labels.max())
        raise UserError(
            f"{examples.where(outside[0])}: label {examples.labels[outside[0]]}, but "
            f"model.num_classes={num_classes} has labels 0 to {num_classes - 1}; "
            f"set model.num_classes={worst + 1} or correct the list"
        )
    _check_files(examples, sample, channels)
    counts = np.bincount(examples.labels, minlength=num_classes)
    empty = np.flatnonzero(counts == 0).tolist()
    if not empty:
        return counts, []
    named = ", ".join(examples.classes.get(label, str(label)) for label in empty[:NAMED])
    more = ", ..." if len(empty) > NAMED else ""
    return counts, [f"{len(empty)} of {num_classes} classes have no images: {named}{more}"]


def _check_files(examples: Examples, sample: int, channels: int) -> None:
    spread = np.unique(np.linspace(0, len(examples) - 1, min(sample, len(examples))).astype(int))
    faults = (_fault(examples, index, channels) for index in spread.tolist())
    bad = [fault for fault in faults if fault]
    if bad:
        shown = "\n  ".join(bad[:NAMED])
        raise UserError(
            f"{len(bad)} of {len(spread)} files looked at cannot be read:\n  {shown}\n"
            f"paths start from {examples.root}: set data.root if the images lie elsewhere; "
            f"otherwise mend the files or take them out"
        )


def _fault(examples: Examples, index: int, channels: int) -> str | None:
    """Why an image cannot be read, with its place; None if it can."""
    try:
        decode(examples.paths[index], channels)
    except UnreadableImage as error:
        return str(error.at(examples.where(index)))
    return None
