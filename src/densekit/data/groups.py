"""data.group: keeps a patient's images (or any other group) all in training or all in validation.

A network that has trained on a patient's other images does better on this one than on a new
patient's, so validation on such images is optimistic.
"""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from densekit.config import UserError, nearest
from densekit.data.listing import Examples, readable

GROUPS_NAMED = 5  # in a message


def with_groups(examples: Examples, group: str, option: str = "data.group") -> Examples:
    """`examples` with each image's group by data.group: a column of their CSV file, or the group in
    brackets of a regular expression on their paths below the root. `option` is the option that set
    it. Raises UserError, with file and line, for an image without a group.
    """
    asked = f"{option}={group}"
    if group in examples.columns:
        named = examples.columns[group]
        empty = np.flatnonzero(named == "")
        if len(empty):
            raise UserError(
                f"{examples.where(empty[0])}: {group} is empty, but {asked} "
                f"groups images by it; fill it in, on {len(empty)} lines"
            )
        return replace(examples, groups=named)
    if "(" not in group:
        heads = list(examples.columns)
        has = f"its other columns are {', '.join(heads)}" if heads else "there are no columns"
        raise UserError(
            f"{asked}: {examples.origin} has no such column{nearest(group, heads)} "
            f"({has}); or give a regular expression on the paths, with brackets around what "
            f"identifies the group, such as ^(patient\\d+)/"
        )
    return replace(examples, groups=_of_paths(examples, _compiled(group, asked), asked))


def _compiled(group: str, asked: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(group)
    except re.error as error:
        raise UserError(f"{asked}: not a regular expression: {error}") from error
    if pattern.groups != 1:
        raise UserError(
            f"{asked}: expected one group in brackets, got {pattern.groups}; write other "
            f"brackets as (?:...)"
        )
    return pattern


def _of_paths(examples: Examples, pattern: re.Pattern[str], asked: str) -> np.ndarray:
    named = np.empty(len(examples), object)
    for index in range(len(examples)):
        path = examples.relative(index)
        found = pattern.search(path)
        if not (found and found[1]):
            raise UserError(
                f"{examples.where(index)}: {asked} does not match {readable(path)}; every image "
                f"needs a group"
            )
        named[index] = found[1]
    return named


def numbered(groups: np.ndarray) -> np.ndarray:
    """Each image's group as a number, in the order of their names: int64 [n]."""
    return np.unique(groups, return_inverse=True)[1].astype(np.int64)


def check_apart(train: Examples, val: Examples, group: str) -> None:
    """Raises UserError for groups that are on both sides, naming some."""
    assert train.groups is not None
    assert val.groups is not None
    both = sorted(set(train.groups) & set(val.groups))
    if both:
        images = int(np.isin(val.groups, both).sum())
        more = ", ..." if len(both) > GROUPS_NAMED else ""
        raise UserError(
            f"data.group={group}: {len(both)} are in both the training and the validation images "
            f"({readable(', '.join(both[:GROUPS_NAMED]))}{more}), with {images} of the {len(val)} "
            f"validation images, so validation would be optimistic; remove them from one, or omit "
            f"data.val and hold out groups with data.val_fraction=0.2"
        )


def group_counts(train: Examples, val: Examples) -> dict[str, int] | None:
    """How many groups each side has, and how many both have; None without groups."""
    if train.groups is None or val.groups is None:
        return None
    sides = set(train.groups), set(val.groups)
    return {"train": len(sides[0]), "val": len(sides[1]), "both": len(sides[0] & sides[1])}


def group_notes(train: Examples, val: Examples, group: str | None) -> list[str]:
    """A note on how many groups each side has; none without groups."""
    counts = group_counts(train, val)
    if counts is None:
        return []
    return [
        f"data.group={group}: {counts['train']:,} in training, {counts['val']:,} in validation, "
        f"{counts['both']} in both"
    ]
