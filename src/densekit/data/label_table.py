"""CSV files with a header line that say which classes each image has.

Either a column for each class (1 present, 0 absent, -1 or empty unknown), as in CheXpert, or one
column of class names separated by bars, as NIH's `Finding Labels`. The columns are recognised by
their names and cells, and reported.
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
IMAGE_HEADERS = frozenset(
    ("path", "filepath", "file", "filename", "image", "imagepath", "imagefile", "imageindex",
     "imageid", "imagename", "img", "imgpath")
)  # fmt: skip
"""Names of the image column, lower case, without blanks or punctuation."""
NAME_LISTS = frozenset(("findinglabels", "labels", "classes", "tags"))
"""Names of a column of class names, likewise."""
NO_CLASS = frozenset(("no finding", "none", "-"))
"""Its cell, in lower case, for an image with none of the classes."""
VALUES = {"": -1, "nan": -1, "-1": -1, "-1.0": -1, "0": 0, "0.0": 0, "false": 0, "1": 1,
          "1.0": 1, "true": 1}  # fmt: skip

TYPOS = 0.1
"""Of a class column's filled cells, how many at most are mistakes; where more are no labels, the
column is about something else."""


@dataclass(frozen=True)
class Table:
    """A CSV file's text."""

    file: Path
    columns: Mapping[str, list[str]]
    """Cells by column name."""
    lines: list[int]

    @property
    def paths(self) -> str:
        """The name of the image column."""
        named = [header for header in self.columns if plain_header(header) in IMAGE_HEADERS]
        return (named or list(self.columns))[0]

    @property
    def names(self) -> str | None:
        """The name of the column of class names, if there is one."""
        return next((header for header in self.columns if plain_header(header) in NAME_LISTS), None)


def read_findings(table: Table, root: Path, classes: Sequence[str] | None) -> Examples:
    """Multilabel examples. Raises UserError, with file and line."""
    by_name = table.names is not None and not (classes and set(classes) <= set(table.columns))
    names, labels = (_from_names if by_name else _from_columns)(table, classes)
    used = {table.paths, table.names if by_name else None, *names}
    others = {h: np.array(c, dtype=object) for h, c in table.columns.items() if h not in used}
    left = f"; other columns: {listed(others)}" if others else ""
    if not by_name and classes is None:
        left += "; data.classes=[...] chooses others"
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
    number, header = next(rows, (0, ""))
    if not header:
        raise UserError(f"{file}: is empty; expected a header line such as `path,edema,mass`")
    between = delimiter or max(",;\t", key=header.count)
    headers = [cell.strip() for cell in next(csv.reader([header], delimiter=between))]
    if len(headers) < 2 or len(set(headers)) < len(headers):
        raise UserError(
            f"{file}:{number}: expected distinct column names such as `path,edema,mass`, "
            f"got {header!r}"
        )
    if any(Path(cell).suffix.lower() in image_suffixes() for cell in headers):
        raise UserError(
            f"{file}:{number}: expected a header line such as `path,label`, got the first image: "
            f"{header!r}; add a header line above it"
        )
    cells: list[list[str]] = []
    lines: list[int] = []
    malformed = Malformed()
    for number, row in _rows(rows, between):
        if between == "\t":  # trailing tabs were stripped as blanks
            row += [""] * (len(headers) - len(row))
        with malformed.line():
            if len(row) < len(headers) or any(cell.strip() for cell in row[len(headers) :]):
                raise UserError(
                    f"{file}:{number}: has {len(row)} cells, but the header line has {len(headers)}"
                )
            cells.append([cell.strip() for cell in row[: len(headers)]])
            lines.append(number)
    malformed.refuse()
    if not cells:
        raise UserError(f"{file}: has a header line but no images")
    columns = zip(*cells, strict=True)
    return Table(file, dict(zip(headers, map(list, columns), strict=True)), lines)


def _rows(lines: Iterator[tuple[int, str]], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in lines:
        yield number, next(csv.reader([line], delimiter=delimiter))


def _from_columns(table: Table, classes: Sequence[str] | None) -> tuple[list[str], np.ndarray]:
    """Labels from a column for each class."""
    headers = [header for header in table.columns if header not in (table.paths, table.names)]
    for name in classes or ():
        if name not in headers:
            raise unknown_class(str(table.file), name, headers)
    if classes is None:
        _refuse_typos(table, headers)
        headers = [header for header in headers if _are_labels(table.columns[header])]
        if not headers:
            raise UserError(
                f"{table.file}: no column holds only 1 (present), 0 (absent), -1 or nothing "
                f"(unknown); name the class columns with data.classes=[...]; a single column "
                f"with each image's class needs model.task=multiclass or binary"
            )
        classes = headers
    labels = np.empty((len(table.lines), len(classes)), np.int8)
    malformed = Malformed()
    for place, header in enumerate(classes):
        column = [VALUES.get(cell.lower()) for cell in table.columns[header]]
        for row in [row for row, value in enumerate(column) if value is None]:
            with malformed.line():
                raise UserError(
                    f"{table.file}:{table.lines[row]}: {header} is {table.columns[header][row]!r}; "
                    f"expected 1 (present), 0 (absent), -1 or nothing (unknown)"
                )
        labels[:, place] = np.array([value or 0 for value in column], np.int8)
    malformed.refuse()
    return list(classes), labels


def _refuse_typos(table: Table, headers: Sequence[str]) -> None:
    """Raises UserError for a column that would be a class but for a few cells: to leave it out
    would lose a finding.
    """
    malformed = Malformed()
    for header in headers:
        filled = [(row, cell) for row, cell in enumerate(table.columns[header]) if cell]
        wrong = [(row, cell) for row, cell in filled if cell.lower() not in VALUES]
        if len(wrong) > TYPOS * len(filled):
            continue
        for row, cell in wrong:
            with malformed.line():
                raise UserError(
                    f"{table.file}:{table.lines[row]}: {header} is {cell!r}, but 0, 1 or -1 in "
                    f"{len(filled) - len(wrong):,} of {len(filled):,} lines; correct it, or name "
                    f"the class columns with data.classes=[...] if {header} is none"
                )
    malformed.refuse()


def _are_labels(column: list[str]) -> bool:
    values = {VALUES.get(cell.lower()) for cell in set(column)}
    return None not in values and values != {-1}


def _from_names(table: Table, classes: Sequence[str] | None) -> tuple[list[str], np.ndarray]:
    """Labels from a column of class names."""
    header, named = table.names, []
    assert header is not None
    malformed = Malformed()
    for cell, number in zip(table.columns[header], table.lines, strict=True):
        with malformed.line():
            if not cell:
                raise UserError(
                    f"{table.file}:{number}: {header} is empty; write `No Finding` for an "
                    f"image with none"
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
        raise UserError(f"{table.file}: column {header} names no class for any image")
    return chosen, np.array([[name in each for name in chosen] for each in named], np.int8)


def plain_header(header: str) -> str:
    """Normalised as in IMAGE_HEADERS."""
    return re.sub(r"[\W_]", "", header.lower())


def unknown_class(origin: str, name: str, known: Sequence[str]) -> UserError:
    """The error for a name in data.classes that is not a class."""
    return UserError(f"data.classes: {origin} has no class {name!r}{nearest(name, known)}")
