"""CSV files in which one column holds each image's class, by name or by number."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from densekit.config import UserError, nearest
from densekit.data.classes import listed, spelling
from densekit.data.label_table import IMAGE_HEADERS, NAME_LISTS, TABLES, Table, plain_header
from densekit.data.listing import Examples, is_label, read_class_names, text_lines

CLASS_HEADERS = (
    "label", "class", "target", "category", "diagnosis", "dx", "classname", "labelname",
    "classid", "labelid", "y", *sorted(NAME_LISTS),
)  # fmt: skip
"""Names of the class column, lower case, without blanks or punctuation, by priority."""
PLAIN_LIST = re.compile(r"[,;|\s]\s*\d+$")  # how its first line ends


def is_table(file: Path) -> bool:
    """Whether it is a CSV file with a header line, not a plain list. Raises UserError."""
    if file.suffix.lower() not in TABLES:
        return False
    _, first = next(text_lines(file), (0, ""))
    headers = {plain_header(cell) for cell in re.split(r"[,;\t]", first)}
    return bool(headers & IMAGE_HEADERS) or not PLAIN_LIST.search(first)


def class_header(table: Table) -> str | None:
    """The name of the column that holds the class; None if there is no such column."""
    headers = {plain_header(header): header for header in table.columns if header != table.paths}
    return next((headers[plain] for plain in CLASS_HEADERS if plain in headers), None)


def read_classes(table: Table, root: Path) -> Examples:
    """One class per image. Names are numbered by a classes.txt beside the file, else in sorted
    order; numbers are labels as they are. Raises UserError, with file and line."""
    others = [header for header in table.columns if header != table.paths]
    header = class_header(table) or (others[0] if len(others) == 1 else None)
    if header is None:
        raise UserError(
            f"{table.file}: no column is called label or class; there are {listed(others)}; rename "
            f"the one that holds each image's class to label; a file with a column of 0 and 1 for "
            f"each class needs model.task=multilabel"
        )
    cells = table.columns[header]
    if "" in cells:
        number = table.lines[cells.index("")]
        raise UserError(f"{table.file}:{number}: {header} is empty; every image needs its class")
    bars = next((row for row, cell in enumerate(cells) if "|" in cell), None)
    if bars is not None:
        raise UserError(
            f"{table.file}:{table.lines[bars]}: {header} is {cells[bars]!r}, several classes, "
            f"which needs model.task=multilabel"
        )
    names = read_class_names(table.file.with_name("classes.txt"))
    numbers = [cell.removesuffix(".0") for cell in cells]  # pandas writes 3.0 in a column with gaps
    if all(map(is_label, numbers)):
        labels = np.array(numbers, np.int64)
    else:
        names = names or dict(enumerate(sorted(set(cells))))
        labels = _numbered(table, header, names)
    rest = {h: np.array(c, dtype=object) for h, c in table.columns.items()
            if h not in (table.paths, header)}  # fmt: skip
    left = f"; other columns: {listed(rest)}" if rest else ""
    return Examples(
        paths=[os.path.join(root, path) for path in table.columns[table.paths]],  # noqa: PTH118
        labels=labels,
        classes=names,
        root=str(root),
        origin=str(table.file),
        lines=table.lines,
        notes=(f"{table.file}: images in {table.paths!r}, the class in {header!r}{left}",),
        columns=rest,
    )


def _numbered(table: Table, header: str, names: Mapping[int, str]) -> np.ndarray:
    """int64 [n]."""
    known = {spelling(name): label for label, name in names.items()}
    cells = table.columns[header]
    found = [known.get(spelling(cell)) for cell in cells]
    if None in found:
        row = found.index(None)
        raise UserError(
            f"{table.file}:{table.lines[row]}: {header} is {cells[row]!r}, which the classes.txt "
            f"beside it does not name{nearest(cells[row], list(names.values()))}"
        )
    return np.array(found, np.int64)
