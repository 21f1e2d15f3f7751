"""CSV files with a head: images, and the classes that are there or not.

Either a column for each class (1 there, 0 not there, -1 or nothing unknown), as CheXpert's, or one
column with the names of those that are there, separated by bars, as NIH's `Finding Labels`. Which
columns they are is found by their heads and cells, and said.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from densekit.config import UserError, nearest
from densekit.data.classes import listed
from densekit.data.folders import image_suffixes
from densekit.data.listing import Examples, text_lines
from densekit.data.malformed import Malformed

TABLES = (".csv", ".tsv")
IMAGE_HEADS = frozenset(
    ("path", "filepath", "file", "filename", "image", "imagepath", "imagefile", "imageindex",
     "imageid", "imagename", "img", "imgpath")
)  # fmt: skip
"""Heads of the column that holds the images, without case, blanks and signs."""
NAME_LISTS = frozenset(("findinglabels", "labels", "classes", "tags"))
"""Heads of a column of class names, likewise."""
NO_CLASS = frozenset(("no finding", "none", "-"))
"""What such a column holds for an image without any of the classes."""
VALUES = {"": -1, "nan": -1, "-1": -1, "-1.0": -1, "0": 0, "0.0": 0, "false": 0, "1": 1,
          "1.0": 1, "true": 1}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """A CSV file's text."""

    file: Path
    columns: Mapping[str, list[str]]
    """By their heads."""
    lines: list[int]

    @property
    def paths(self) -> str:
        """The head of the column that holds the images."""
        named = [head for head in self.columns if plain_head(head) in IMAGE_HEADS]
        return (named or list(self.columns))[0]

    @property
    def names(self) -> str | None:
        """The head of the column that holds names of classes."""
        return next((head for head in self.columns if plain_head(head) in NAME_LISTS), None)


def read_findings(table: Table, root: Path, classes: Sequence[str] | None) -> Examples:
    """Classes that are there or not. Raises UserError, with file and line."""
    by_name = table.names is not None and not (classes and set(classes) <= set(table.columns))
    names, labels = (_from_names if by_name else _from_columns)(table, classes)
    used = {table.paths, table.names if by_name else None, *names}
    others = {h: np.array(c, dtype=object) for h, c in table.columns.items() if h not in used}
    left = f"; other columns: {listed(others)}" if others else ""
    return Examples(
        paths=[os.path.join(root, path) for path in table.columns[table.paths]],  # noqa: PTH118
        labels=labels,
        classes=dict(enumerate(names)),
        root=str(root),
        origin=str(table.file),
        lines=table.lines,
        notes=(f"{table.file}: images in {table.paths!r}, classes {listed(names)}{left}",),
        unlisted=0 if by_name else -1,
        columns=others,
    )


def open_table(file: Path, delimiter: str | None) -> Table:
    """Raises UserError, with file and line."""
    rows = text_lines(file)
    number, head = next(rows, (0, ""))
    if not head:
        raise UserError(f"{file}: is empty; expected a line of heads such as `path,edema,mass`")
    between = delimiter or max(",;\t", key=head.count)
    heads = [cell.strip() for cell in next(csv.reader([head], delimiter=between))]
    if len(heads) < 2 or len(set(heads)) < len(heads):
        raise UserError(
            f"{file}:{number}: expected different heads such as `path,edema,mass`, got {head!r}"
        )
    if any(Path(cell).suffix.lower() in image_suffixes() for cell in heads):
        raise UserError(
            f"{file}:{number}: expected a line of heads such as `path,label`, got the first image: "
            f"{head!r}; put such a line above it"
        )
    cells: list[list[str]] = []
    lines: list[int] = []
    malformed = Malformed()
    for number, row in _rows(rows, between):
        if between == "\t":  # of which those at a line's end are taken for blanks
            row += [""] * (len(heads) - len(row))
        with malformed.line():
            if len(row) < len(heads) or any(cell.strip() for cell in row[len(heads) :]):
                raise UserError(
                    f"{file}:{number}: has {len(row)} cells, but there are {len(heads)} heads"
                )
            cells.append([cell.strip() for cell in row[: len(heads)]])
            lines.append(number)
    malformed.refuse()
    if not cells:
        raise UserError(f"{file}: has a line of heads and no images")
    columns = zip(*cells, strict=True)
    return Table(file, dict(zip(heads, map(list, columns), strict=True)), lines)


def _rows(lines: Iterator[tuple[int, str]], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in lines:
        yield number, next(csv.reader([line], delimiter=delimiter))


def _from_columns(table: Table, classes: Sequence[str] | None) -> tuple[list[str], np.ndarray]:
    """A column for each class."""
    heads = [head for head in table.columns if head not in (table.paths, table.names)]
    for name in classes or ():
        if name not in heads:
            raise unknown_class(str(table.file), name, heads)
    if classes is None:
        heads = [head for head in heads if _are_labels(table.columns[head])]
        if not heads:
            raise UserError(
                f"{table.file}: no column holds only 1 (there), 0 (not there), -1 or nothing "
                f"(unknown); name the columns of the classes with data.classes=[...]; one column "
                f"of names or numbers, a class an image, is for model.task=multiclass or binary"
            )
        classes = heads
    labels = np.empty((len(table.lines), len(classes)), np.int8)
    malformed = Malformed()
    for place, head in enumerate(classes):
        column = [VALUES.get(cell.lower()) for cell in table.columns[head]]
        for row in [row for row, value in enumerate(column) if value is None]:
            with malformed.line():
                raise UserError(
                    f"{table.file}:{table.lines[row]}: {head} is {table.columns[head][row]!r}; "
                    f"expected 1 (there), 0 (not there), -1 or nothing (unknown)"
                )
        labels[:, place] = np.array([value or 0 for value in column], np.int8)
    malformed.refuse()
    return list(classes), labels


def _are_labels(column: list[str]) -> bool:
    values = {VALUES.get(cell.lower()) for cell in set(column)}
    return None not in values and values != {-1}


def _from_names(table: Table, classes: Sequence[str] | None) -> tuple[list[str], np.ndarray]:
    """A column with the names of the classes that are there."""
    head, named = table.names, []
    assert head is not None
    malformed = Malformed()
    for cell, number in zip(table.columns[head], table.lines, strict=True):
        with malformed.line():
            if not cell:
                raise UserError(
                    f"{table.file}:{number}: {head} is empty; write `No Finding` where there is "
                    f"none"
                )
        names = {name.strip() for name in cell.split("|")}
        named.append({name for name in names if name.lower() not in NO_CLASS})
    malformed.refuse()
    known = sorted(set().union(*named))
    for name in classes or ():
        if name not in known:
            raise unknown_class(str(table.file), name, known)
    chosen = list(classes) if classes is not None else known
    if not chosen:
        raise UserError(f"{table.file}: no image has a class in its column {head}")
    return chosen, np.array([[name in each for name in chosen] for each in named], np.int8)


def plain_head(head: str) -> str:
    """As IMAGE_HEADS has it."""
    return re.sub(r"[\W_]", "", head.lower())


def unknown_class(origin: str, name: str, known: Sequence[str]) -> UserError:
    """Of data.classes."""
    return UserError(f"data.classes: {origin} has no class {name!r}{nearest(name, known)}")
