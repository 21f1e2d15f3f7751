"""Splits one list into training and validation images, by data.val_fraction or data.fold."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np

from densekit.config import UserError
from densekit.data.checks import named_labels
from densekit.data.config import DataConfig
from densekit.data.groups import check_apart
from densekit.data.listing import Examples, readable
from densekit.data.stratify import (
    assign_groups,
    files_of_classes,
    fold_of_files,
    share_of_files,
)
from densekit.progress import waiting

Side = Literal["train", "val"]
Sides = Mapping[str, Side]
"""Each image's side, train or val, by its path below the root."""
SPLIT_FILE = "split.csv"  # beside a run's recipe.yaml
HEADS = ("path", "split", "group")


def divide(
    examples: Examples, config: DataConfig, known: Sides | None = None
) -> tuple[Examples, Examples]:
    """-> training and validation images, in their original order. Raises UserError.

    `known` images stay on their side, and the other images of their groups join them; the rest
    are split afresh.
    """
    if known is None:
        held, notes = _held_out(examples, config), _single_notes(examples, config)
    else:
        held, notes = _as_before(examples, config, known)
    if not held.any() or held.all():
        raise UserError(_one_sided(examples, config))
    train, val = (examples.subset(np.flatnonzero(part)) for part in (~held, held))
    if config.group is not None:
        check_apart(train, val, config.group)
    return replace(train, notes=(*train.notes, *notes)), replace(val, notes=())


def _one_sided(examples: Examples, config: DataConfig) -> str:
    if examples.groups is not None:
        count = len(set(examples.groups))
        return (
            f"{config.held_out}: the {count} groups of data.group={config.group} in "
            f"{examples.origin} cannot be split into training and validation; add images, use "
            f"fewer folds or set data.val"
        )
    if config.fold is not None:
        return f"{config.held_out}: {examples.origin} has {len(examples)} images; use fewer folds"
    return (
        f"{config.held_out}: {examples.origin} has no class with two images or more, so none can "
        f"be held out; add images or set data.val"
    )


def _held_out(examples: Examples, config: DataConfig) -> np.ndarray:
    """Which images are held out, bool [n]; depends on images, groups and options alone."""
    seed, fraction = config.split_seed, config.val_fraction
    fold, folds = map(int, (config.fold or "1/1").split("/"))
    if examples.groups is not None:
        shares = [fraction, 1 - fraction] if config.fold is None else [1 / folds] * folds
        with waiting("holding groups out"):
            parts = assign_groups(examples.groups, examples.labels, shares, seed)
        return np.array([parts[group] == fold - 1 for group in examples.groups], bool)
    names = relative_paths(examples)
    by_class = files_of_classes(names, examples.strata)
    held = (
        share_of_files(by_class, fraction, seed)
        if config.fold is None
        else fold_of_files(by_class, fold - 1, folds, seed)
    )
    return np.array([name in held for name in names], bool)


def relative_paths(examples: Examples) -> list[str]:
    """Each image's path below the root."""
    return [examples.relative(index) for index in range(len(examples))]


def _as_before(
    examples: Examples, config: DataConfig, known: Sides
) -> tuple[np.ndarray, list[str]]:
    """Which images are held out, given those that are known, and a note on new ones."""
    sides = [known.get(name) for name in relative_paths(examples)]
    came = np.array([side is None for side in sides], bool)
    if examples.groups is not None:
        of_group = {g: s for g, s in zip(examples.groups, sides, strict=True) if s is not None}
        sides = [of_group.get(group) for group in examples.groups]
    held = np.array([side == "val" for side in sides], bool)
    new = np.flatnonzero([side is None for side in sides])
    if len(new):
        held[new] = _held_out(examples.subset(new), config)
    if not came.any():
        return held, []
    return held, [
        f"{examples.origin}: {came.sum()} images are new since the run was split: "
        f"{(came & ~held).sum()} join training and {(came & held).sum()} validation; the others "
        f"stay where they are"
    ]


def _single_notes(examples: Examples, config: DataConfig) -> list[str]:
    """A note on classes whose only image stays in training."""
    if config.fold is not None or examples.groups is not None:
        return []
    by_class = files_of_classes(relative_paths(examples), examples.strata)
    named = range(examples.num_classes)
    single = sorted(k for k, files in by_class.items() if len(files) == 1 and k in named)
    if not single:
        return []
    return [
        f"{config.held_out}: the only image of a class stays in training, so validation says "
        f"nothing about {named_labels(examples, single)}"
    ]


# The split's file in a run's folder ---------------------------------------------------------


def split_text(train: Examples, val: Examples) -> bytes:
    """Both sides as CSV: each image's path below the root, its side and its group."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(HEADS)
    for side, examples in (("train", train), ("val", val)):
        groups = [""] * len(examples) if examples.groups is None else examples.groups
        written = dict(zip(relative_paths(examples), groups, strict=True))
        rows.writerows((path, side, group) for path, group in written.items())
    return text.getvalue().encode("utf-8", "surrogateescape")


def read_sides(file: Path) -> Sides:
    """Reads what `split_text` wrote. Raises UserError with file:line."""
    try:
        text = file.read_bytes().decode("utf-8", "surrogateescape")
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    sides: dict[str, Side] = {}
    rows = csv.reader(io.StringIO(text, newline=""))
    for row in rows:
        if rows.line_num == 1 and tuple(row) == HEADS:
            continue
        if len(row) != len(HEADS) or row[1] not in get_args(Side):
            raise UserError(
                f"{file}:{rows.line_num}: expected path,split,group with a split of train or val, "
                f"got {readable(','.join(row))!r}; if the images are unchanged, delete the file "
                f"and resume the run without it"
            )
        sides[row[0]] = cast("Side", row[1])
    return sides


def held_before(examples: Examples, known: Sides) -> Examples:
    """The images that a run validated on, if known; with notes on missing and new ones."""
    names = relative_paths(examples)
    held = [index for index, name in enumerate(names) if known.get(name) == "val"]
    new = sum(name not in known for name in names)
    gone = sum(side == "val" for side in known.values()) - len({names[i] for i in held})
    notes = []
    if new:
        notes.append(f"{examples.origin}: {new} images were added after training and are left out")
    if gone:
        notes.append(f"{examples.origin}: {gone} of its validation images are no longer listed")
    if not held:
        raise UserError(
            f"{examples.origin}: lists none of the images that the run was validated on; name the "
            f"images to evaluate on with --data LIST|FOLDER"
        )
    return replace(examples.subset(held), notes=(*examples.notes, *notes))
