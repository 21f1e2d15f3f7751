"""Opens the images that `data.root`, `data.train` and `data.val` name.

A source is a list file, a folder of class folders, `builtin:NAME`, the folder of a whole data set
(both splits, as `train_list.txt` and `val_list.txt` or as `train/` and `val/`), or shards, by their
names or their index, which such a folder may also hold.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from densekit.config import UserError, nearest
from densekit.data import builtin
from densekit.data.classes import Numbering, match
from densekit.data.config import DataConfig, Task
from densekit.data.folders import class_folders
from densekit.data.groups import check_apart, with_groups
from densekit.data.holdout import Side, Sides, divide, held_before
from densekit.data.listing import Examples
from densekit.data.multilabel import ONE_CLASS, Labelling, match_multilabel, widen
from densekit.data.shards.cache import ShardCache
from densekit.data.shards.examples import open_shards
from densekit.data.shards.index import INDEX_SUFFIX
from densekit.data.shards.spec import LOCAL, ShardSpec, in_folder, is_shards, parse_shards
from densekit.remote import is_url

SUBFOLDERS: dict[Side, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "test", "testing"),
}
"""In upper or lower case (Train/, VAL/); the first that exists."""


def open_examples(
    spec: str,
    root: str | None = None,
    labelling: Labelling = ONE_CLASS,
    split: Side = "val",
    numbering: Numbering | None = None,
    cache: ShardCache | None = None,
) -> Examples:
    """The examples that `spec` names; of a whole data set, its `split`.

    A relative `spec` is looked up under `root`, then in the current folder. Paths in a list file
    are relative to `root`, else to the file's folder. With a `numbering`, labels are converted to
    it. Remote shards go through `cache`. Raises UserError.
    """
    place = locate_images(spec, root, split)
    examples = _open(place, root, labelling, split, cache or ShardCache.of(DataConfig()))
    return examples if numbering is None else match_labels(examples, numbering)


def match_labels(examples: Examples, target: Numbering) -> Examples:
    """`examples` with the labels of `target`. Raises UserError."""
    return (match if examples.labels.ndim == 1 else match_multilabel)(examples, target)


def open_split(
    config: DataConfig,
    task: Task = "multiclass",
    num_classes: int | None = None,
    known: Sides | None = None,
) -> tuple[Examples, Examples]:
    """Training and validation examples. Multilabel ones both have `num_classes` classes, or as many
    as the larger of the two. `known` images stay on their side if the training list is split.
    Raises UserError, also for a group on both sides.
    """
    place, train = _open_train(config, task)
    where = _own_val(config, place)
    if where is None:
        if config.held_out is None:
            raise UserError(
                f"no validation images for {train.origin}: set data.val, or hold some out with "
                f"data.val_fraction=0.1"
            )
        if config.relabel:
            raise UserError("data.relabel=true needs a validation list: set data.val")
        return divide(widen(train, num_classes or 0), config, known)
    labelling, cache = Labelling.of(config, task), ShardCache.of(config)
    val = _grouped(_open(where, config.root, labelling, "val", cache), config)
    if config.group is not None:
        check_apart(train, val, config.group)
    if train.labels.ndim == 1 or train.classes:
        val = match_labels(val, Numbering.of_examples(train))
    if config.relabel:
        new = {old: label for label, old in enumerate(np.unique(train.labels).tolist())}
        return train.relabelled(new), val.relabelled(new)
    count = num_classes or max(train.num_classes, val.num_classes)
    return widen(train, count), widen(val, count)


def _open_train(config: DataConfig, task: Task) -> tuple[Path | ShardSpec, Examples]:
    if config.train is not None:
        place = locate_images(config.train, config.root)
    elif config.root is not None:
        place = locate_images(config.root)
    else:
        raise UserError(
            "no training images: set data.train to a list file, a folder with one folder per "
            "class, or builtin:mnist5k; or data.root to a folder with train_list.txt and "
            "val_list.txt or with train/ and val/"
        )
    cache = ShardCache.of(config)
    train = _open(place, config.root, Labelling.of(config, task), "train", cache)
    return place, _grouped(train, config)


def _grouped(examples: Examples, config: DataConfig) -> Examples:
    return examples if config.group is None else with_groups(examples, config.group)


def _own_val(config: DataConfig, place: Path | ShardSpec) -> Path | ShardSpec | None:
    """Where the data set's own validation images are; None if it has none."""
    own: Path | ShardSpec | None = None
    if isinstance(place, Path) and place.is_dir():
        own = find_part(place, "val")
    elif config.held_out is None and is_remote_folder(config.train or config.root or ""):
        own = locate_images(config.train or config.root or "", split="val")
    if config.val is None and own is None:
        return None
    if config.held_out:
        has = f"data.val={config.val}" if config.val is not None else f"{own}"
        off = "data.fold=null" if config.fold else "data.val_fraction=0"
        raise UserError(
            f"{config.held_out} holds out training images, but there is also {has}; set {off} to "
            f"use that"
        )
    if config.val is not None:
        return locate_images(config.val, config.root, "val")
    return place if isinstance(place, Path) else own


def open_val(config: DataConfig, task: Task = "multiclass", known: Sides | None = None) -> Examples:
    """The validation examples of `open_split`; those held out of training are the `known` ones.
    The training images may be missing if there is a separate validation list and no relabelling.
    Raises UserError.
    """
    if known is not None and config.held_out:
        return held_before(_open_train(config, task)[1], known)
    if config.val is not None and not config.relabel:
        place = locate_images(config.val, config.root, "val")
        if isinstance(place, ShardSpec) or place.is_file():
            cache = ShardCache.of(config)
            return _open(place, config.root, Labelling.of(config, task), "val", cache)
    return open_split(config, task)[1]


def locate_images(spec: str, root: str | None = None, split: Side = "train") -> Path | ShardSpec:
    """The path or shards that `spec` names; for a URL of a folder, its `split`. A builtin is

    written first. Raises UserError.
    """
    if is_remote_folder(spec):
        spec = in_folder(spec.rstrip("/"), f"{split}{INDEX_SUFFIX}")
    elif root and is_url(root) and not (is_url(spec) or Path(spec).is_absolute()):
        return locate_images(in_folder(root.rstrip("/"), spec), split=split)
    if is_url(spec):
        return parse_shards(spec)
    if spec.startswith("builtin:"):
        name = spec.removeprefix("builtin:")
        if name not in builtin.WRITERS:
            raise UserError(f"{spec}: no such builtin{nearest(name, builtin.WRITERS)}")
        return builtin.WRITERS[name](Path(root or f"data/{name}").expanduser())
    tried = _candidates(spec, root)
    for place in tried:
        if is_there(place):
            return parse_shards(str(place)) if is_shards(spec) else place
    raise UserError(f"there is no file or folder {' or '.join(map(str, tried))}")


def is_remote_folder(spec: str) -> bool:
    """Whether it is the URL of a folder."""
    return is_url(spec) and not is_shards(spec)


def _candidates(spec: str, root: str | None) -> list[Path]:
    path = Path(spec.removeprefix(LOCAL)).expanduser()
    return [Path(root).expanduser() / path, path] if root and not path.is_absolute() else [path]


def is_there(place: Path) -> bool:
    """Whether the file or folder exists, or the first of the named shards."""
    return parse_shards(str(place)).exists() if is_shards(place.name) else place.exists()


def anchored(config: DataConfig) -> DataConfig:
    """The config with absolute paths, valid from any folder. A builtin is written when needed."""

    def absolute(spec: str | None) -> str | None:
        if spec is None or spec.startswith("builtin:") or is_url(spec) or is_url(config.root or ""):
            return spec
        tried = _candidates(spec, config.root)
        return str(next(filter(is_there, tried), tried[-1]).absolute())

    root = config.root
    if root is not None and not is_url(root):
        root = str(Path(root).expanduser().absolute())
    paths = {"root": root, "train": absolute(config.train), "val": absolute(config.val)}
    return config.model_copy(update=paths)


def find_part(folder: Path, split: Side) -> Path | None:
    """`train_list.txt`, `train-index.npz` or `train/` of a whole data set's folder; None if it has
    none of them.
    A subfolder is a split only if it holds class folders itself: a class may be called "train".
    Raises UserError if two names differ only in case.
    """
    file = folder / f"{split}_list.txt"
    if file.is_file():
        return file
    if (index := folder / f"{split}{INDEX_SUFFIX}").is_file():
        return index
    subfolders = class_folders(folder)
    for wanted in SUBFOLDERS[split]:
        alike = [n for n in subfolders if n.lower() == wanted and class_folders(folder / n)]
        if len(alike) > 1:
            raise UserError(
                f"{folder}: holds both {alike[0]}/ and {alike[1]}/; keep one, or choose with "
                f"data.{split}"
            )
        if alike:
            return folder / alike[0]
    return None


def _open(
    place: Path | ShardSpec,
    root: str | None,
    labelling: Labelling,
    split: Side,
    cache: ShardCache,
) -> Examples:
    if isinstance(place, ShardSpec):
        return labelling.of_shards(open_shards(place, cache))
    if place.is_file():
        start = Path(root).expanduser() if root is not None else place.parent
        return labelling.read_file(place, start)
    part = find_part(place, split)
    other = find_part(place, "val" if split == "train" else "train")
    if part is None and other is not None:
        raise UserError(
            f"{place}: has {other.name} but neither {split}_list.txt nor {split}/ with class "
            f"folders; add one, or name the list file or folder itself"
        )
    if part is None:
        return labelling.read_folders(place)
    if is_shards(part.name) and part.is_file():
        return labelling.of_shards(open_shards(parse_shards(str(part)), cache))
    if part.is_file():
        return labelling.read_file(part, place)
    examples = labelling.read_folders(part)
    if other is None or split != "val":
        return examples
    return replace(examples, notes=(*examples.notes, *_beside(place, part, other)))


def _beside(place: Path, val: Path, train: Path) -> list[str]:
    """Notes on how subfolders with names other than train/ and val/ are used."""
    notes = []
    if val.name.lower() in ("test", "testing"):
        notes.append(f"{place}: has no val/, so {val.name}/ is the validation set")
    unused = [n for n in class_folders(place) if n not in (val.name, train.name)]
    if unused:
        notes.append(f"{place}: uses {train.name}/ and {val.name}/, not {unused}")
    return notes
