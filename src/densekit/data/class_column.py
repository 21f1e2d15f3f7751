"""CSV files with a head, one column of which says each image's class, by name or by number."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from densekit.config import UserError, nearest
from densekit.data.classes import listed, spelling
from densekit.data.label_table import IMAGE_HEADS, NAME_LISTS, TABLES, Table, plain_head
from densekit.data.listing import Examples, is_label, read_class_names, text_lines

CLASS_HEADS = ("label", "class", "target", "category", "diagnosis", "dx", "classname", "labelname",
               "classid", "labelid", "y", *sorted(NAME_LISTS))  # fmt: skip
"""Heads of the column that holds the class, without case, blanks and signs; the first counts."""
PLAIN_LIST = re.compile(r"[,;|\s]\s*\d+$")  # how its first line ends


def is_table(file: Path) -> bool:
    """Whether it is a CSV file with a head, not a list of paths and numbers. Raises UserError."""
    if file.suffix.lower() not in TABLES:
        return False
    _, first = next(text_lines(file), (0, ""))
    heads = {plain_head(cell) for cell in re.split(r"[,;\t]", first)}
    return bool(heads & IMAGE_HEADS) or not PLAIN_LIST.search(first)


def class_head(table: Table) -> str | None:
    """The head of the column that says the class; None where no head says so."""
    heads = {plain_head(head): head for head in table.columns if head != table.paths}
    return next((heads[plain] for plain in CLASS_HEADS if plain in heads), None)


def read_classes(table: Table, root: Path) -> Examples:
    """One class an image. Names are numbered as a classes.txt beside the file has them, else in
    sorted order; numbers are the labels. Raises UserError, with file and line."""
    others = [head for head in table.columns if head != table.paths]
    head = class_head(table) or (others[0] if len(others) == 1 else None)
    if head is None:
        raise UserError(
            f"{table.file}: no column is called label or class; there are {listed(others)}; call "
            f"the one that says each image's class label; with a column of 0 and 1 for each class "
            f"it is for model.task=multilabel"
        )
    cells = table.columns[head]
    if "" in cells:
        number = table.lines[cells.index("")]
        raise UserError(f"{table.file}:{number}: {head} is empty; every image needs its class")
    bars = next((row for row, cell in enumerate(cells) if "|" in cell), None)
    if bars is not None:
        raise UserError(
            f"{table.file}:{table.lines[bars]}: {head} is {cells[bars]!r}, several classes, which "
            f"are for model.task=multilabel"
        )
    names = read_class_names(table.file.with_name("classes.txt"))
    numbers = [cell.removesuffix(".0") for cell in cells]  # as pandas writes them beside a gap
    if all(map(is_label, numbers)):
        labels = np.array(numbers, np.int64)
    else:
        names = names or dict(enumerate(sorted(set(cells))))
        labels = _numbered(table, head, names)
    rest = {h: np.array(c, dtype=object) for h, c in table.columns.items()
            if h not in (table.paths, head)}  # fmt: skip
    left = f"; other columns: {listed(rest)}" if rest else ""
    return Examples(
        paths=[os.path.join(root, path) for path in table.columns[table.paths]],  # noqa: PTH118
        labels=labels,
        classes=names,
        root=str(root),
        origin=str(table.file),
        lines=table.lines,
        notes=(f"{table.file}: images in {table.paths!r}, the class in {head!r}{left}",),
        columns=rest,
    )


def _numbered(table: Table, head: str, names: Mapping[int, str]) -> np.ndarray:
    """int64 [n]."""
    known = {spelling(name): label for label, name in names.items()}
    cells = table.columns[head]
    found = [known.get(spelling(cell)) for cell in cells]
    if None in found:
        row = found.index(None)
        raise UserError(
            f"{table.file}:{table.lines[row]}: {head} is {cells[row]!r}, which the classes.txt "
            f"beside it does not name{nearest(cells[row], list(names.values()))}"
        )
    return np.array(found, np.int64)
