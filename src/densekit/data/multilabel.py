"""Multilabel and binary labels: each class is present, absent or unknown.

A list file holds `relative/path 0,2,5` lines, and `relative/path -` for an image with none of the
classes; or the labels are in a CSV file (`label_table`). A binary task has one such class: from a
CSV file, or from class folders, a list of labels 0 and 1, or a CSV file with a class column
(`class_column`). K classes; labels are int8 [n, K]: 1 present, 0 absent, -1 unknown.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from densekit.config import UserError
from densekit.data.class_column import class_header, is_table, read_classes
from densekit.data.classes import Numbering, listed, spelling
from densekit.data.config import DataConfig, Task
from densekit.data.folders import read_folder
from densekit.data.label_table import (
    TABLES,
    VALUES,
    Table,
    open_table,
    read_findings,
    unknown_class,
)
from densekit.data.listing import Examples, is_label, read_class_names, read_list, text_lines
from densekit.data.malformed import Malformed


@dataclass(frozen=True)
class Labelling:
    """How to read the labels of a list or folder."""

    task: Task = "multiclass"
    delimiter: str | None = None
    classes: tuple[str, ...] | None = None
    """Those to use, in that order; see data.classes."""

    @classmethod
    def of(cls, config: DataConfig, task: Task) -> Labelling:
        return cls(task, config.delimiter, config.classes)

    def read_file(self, file: Path, root: Path) -> Examples:
        """A list or CSV file with paths relative to `root`. Raises UserError."""
        if self.task == "multiclass":
            if is_table(file):
                return read_classes(open_table(file, self.delimiter), root)
            return read_list(file, root, self.delimiter)
        if file.suffix.lower() in TABLES:
            return self._of_table(open_table(file, self.delimiter), root)
        if self.task == "binary":
            return as_binary(read_list(file, root, self.delimiter), self.classes)
        examples = _read_sets(file, root, self.delimiter)
        return examples if self.classes is None else _selected(examples, self.classes)

    def _of_table(self, table: Table, root: Path) -> Examples:
        head = class_header(table) if self.task == "binary" and table.names is None else None
        if head is None or (self.classes and set(self.classes) <= set(table.columns)):
            return self._one_if_binary(read_findings(table, root, self.classes))
        # a table of findings with just this one; -1 and empty are unknown
        if not self.classes and {cell.lower() for cell in table.columns[head]} <= set(VALUES):
            return read_findings(table, root, [head])
        return as_binary(read_classes(table, root), self.classes)

    def read_folders(self, folder: Path) -> Examples:
        """Class folders. Raises UserError."""
        if self.task == "multilabel":
            raise UserError(
                f"{folder}: class folders give one class per image; model.task=multilabel needs a "
                f"list of `path 0,2,5` lines or a CSV file: name it with data.train or --data"
            )
        examples = read_folder(folder)
        return as_binary(examples, self.classes) if self.task == "binary" else examples

    def of_shards(self, examples: Examples) -> Examples:
        """Images in shards, whose index has the labels. Raises UserError."""
        several = examples.labels.ndim == 2
        if self.task == "binary" and not several:
            return as_binary(examples, self.classes)
        if several != (self.task != "multiclass"):
            has, task = ("several", "multilabel") if several else ("one class", "multiclass")
            raise UserError(
                f"{examples.origin}: has {has} per image, but model.task={self.task}; set "
                f"model.task={task}, or pack it again with --task {self.task}"
            )
        if several and self.classes is not None:
            examples = _selected(examples, self.classes)
        return self._one_if_binary(examples) if several else examples

    def _one_if_binary(self, examples: Examples) -> Examples:
        if self.task == "multilabel" or examples.num_classes == 1:
            return examples
        raise UserError(
            f"{examples.origin}: model.task=binary takes one class, present or absent, but there "
            f"are {listed(examples.classes.values())}; name one with data.classes=[NAME]"
        )


ONE_CLASS = Labelling()


def as_binary(examples: Examples, classes: Sequence[str] | None) -> Examples:
    """Images of one class each, from a list or class folders, as a binary task. The positive class
    is the one that `classes` names, against all others, else the second of two. Raises UserError.
    """
    count = max(examples.num_classes, 2)
    if count > 2 and classes is None:
        raise UserError(
            f"{examples.origin}: model.task=binary takes two classes, labels 0 and 1, but there "
            f"are {count}; name the positive class with data.classes=[NAME]"
        )
    names = {label: examples.classes.get(label, str(label)) for label in range(count)}
    there = 1
    if classes is not None:
        found = [label for label, name in names.items() if [name] == list(classes)]
        if not found:
            raise unknown_class(examples.origin, classes[0], list(names.values()))
        there = found[0]
    others = listed(repr(name) for label, name in names.items() if label != there)
    said = f"{examples.origin}: the positive class is {names[there]!r}, the negative {others}"
    if len(examples.classes) == 2 and classes is None:
        said += f"; to swap them, set data.classes=[{names[0]}]"
    return replace(
        examples,
        labels=(examples.labels == there).astype(np.int8)[:, None],
        classes={0: names[there]},
        notes=(*examples.notes, said),
    )


def match_multilabel(examples: Examples, target: Numbering) -> Examples:
    """`examples` with the classes of `target`, matched by name if both sides have names.

    A class that `target` lacks is left out, and one that a CSV file lacks is unknown for all its
    images, both with a note. Raises UserError if no name matches, or if a list without names has
    a label that `target` lacks.
    """
    if not target.names or not examples.classes:
        if examples.num_classes > target.count:
            place = int(np.argmax(examples.labels[:, -1] >= 0))
            raise UserError(
                f"{examples.where(place)}: {examples.origin} has {examples.num_classes} classes, "
                f"{target.owner} {target.count}"
            )
        return _widened(examples, target.count, dict(target.names) or dict(examples.classes))
    own = {spelling(name): label for label, name in examples.classes.items()}
    theirs = [target.names.get(label, str(label)) for label in range(target.count)]
    places = [own.get(spelling(name)) for name in theirs]
    if all(place is None for place in places):
        raise UserError(
            f"{examples.origin}: none of its classes is a class of {target.owner}: it has "
            f"{listed(examples.classes.values())}; {target.owner} has {listed(theirs)}"
        )
    labels = np.full((len(examples), target.count), examples.unlisted, np.int8)
    for place, column in enumerate(places):
        if column is not None:
            labels[:, place] = examples.labels[:, column]
    missing = [name for name, place in zip(theirs, places, strict=True) if place is None]
    extra = [name for label, name in examples.classes.items() if label not in places]
    notes = [f"{examples.origin}: left out, not classes of {target.owner}: {listed(extra)}"]
    notes = notes if extra else []
    if missing:
        what = "unknown" if examples.unlisted else "absent"
        notes.append(f"{examples.origin}: does not name {listed(missing)}: taken as {what}")
    names = dict(enumerate(theirs))
    return replace(examples, labels=labels, classes=names, notes=(*examples.notes, *notes))


def widen(examples: Examples, num_classes: int) -> Examples:
    """Multilabel examples with `num_classes` classes; those that a list does not name are absent.

    Other examples, and those with as many classes already, are returned unchanged.
    """
    if examples.labels.ndim == 1 or examples.num_classes >= num_classes:
        return examples
    return _widened(examples, num_classes, dict(examples.classes))


def _widened(examples: Examples, num_classes: int, names: dict[int, str]) -> Examples:
    more = ((0, 0), (0, num_classes - examples.num_classes))
    labels = np.pad(examples.labels, more, constant_values=examples.unlisted)
    return replace(examples, labels=labels, classes=names)


# List files ---------------------------------------------------------------------------------


def _read_sets(file: Path, root: Path, delimiter: str | None) -> Examples:
    """`relative/path 0,2,5` lines; the labels follow the last `delimiter`."""
    paths: list[str] = []
    found: list[list[int]] = []
    lines: list[int] = []
    malformed = Malformed()
    for number, line in text_lines(file):
        with malformed.line():
            path, labels = _parse_set(line, delimiter, f"{file}:{number}")
            paths.append(os.path.join(root, path))  # noqa: PTH118 (a million of them)
            found.append(labels)
            lines.append(number)
    malformed.refuse()
    if not paths:
        raise UserError(f"{file}: lists no images; expected lines such as `chest/1.png 0,2,5`")
    names = read_class_names(file.with_name("classes.txt"))
    count = max([*names, *(label for each in found for label in each)], default=-1) + 1
    if not count:
        raise UserError(
            f"{file}: no image has a class; name the classes in a classes.txt beside it"
        )
    labels_of = np.zeros((len(paths), count), np.int8)
    for row, each in zip(labels_of, found, strict=True):
        row[each] = 1
    return Examples(paths, labels_of, names, str(root), str(file), lines)


def _parse_set(line: str, delimiter: str | None, place: str) -> tuple[str, list[int]]:
    path, *rest = line.rsplit(delimiter, 1)
    text = rest[0].strip() if rest else ""
    labels = [] if text == "-" else [part.strip() for part in text.split(",")]
    if path.rstrip().endswith(","):
        raise UserError(
            f"{place}: separate labels by commas without blanks, such as `chest/1.png 0,2,5`, "
            f"got {line!r}"
        )
    if not path.strip() or not all(map(is_label, labels)) or not text:
        raise UserError(
            f"{place}: expected a path and its labels, such as `chest/1.png 0,2,5`, or "
            f"`chest/1.png -` for none, got {line!r}"
        )
    if len(set(labels)) < len(labels):
        raise UserError(
            f"{place}: a label is repeated in {text!r}; name each present class once (a 0 or 1 "
            f"for each class needs a CSV file with a header line)"
        )
    return path.strip(), [int(label) for label in labels]


def _selected(examples: Examples, classes: Sequence[str]) -> Examples:
    """With only these classes, in this order."""
    own = {spelling(name): label for label, name in examples.classes.items()}
    for name in classes:
        if spelling(name) not in own:
            raise unknown_class(examples.origin, name, list(examples.classes.values()))
    columns = [own[spelling(name)] for name in classes]
    names = dict(enumerate(classes))
    return replace(examples, labels=examples.labels[:, columns], classes=names)
