"""Examples: the images of one list or folder, with labels; and the reader of list files.

A list file holds `relative/path label` lines, as in PaddleClas; a `classes.txt` beside it
holds `label name` lines. Lists with several labels per image are in `multilabel`.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from densekit.config import UserError
from densekit.data.list_lines import Lines, plain_lines
from densekit.data.malformed import Malformed
from densekit.data.paths import BLOCK, ENCODING, Paths


class Content(NamedTuple):
    """The bytes of an image that is not a file of its own."""

    name: str
    content: bytes


@dataclass(frozen=True, eq=False)
class Examples:
    """Images and their labels, in the order of the list or folder they come from."""

    why_not_cached: ClassVar[str | None] = None
    """Why the decoded images cannot be cached; None: they can."""

    paths: Sequence[str]
    """Each image's path: `root` joined with the path in the list; stored as Paths."""
    labels: np.ndarray
    """int64 [n]; for multilabel and binary int8 [n, K]: 1 present, 0 absent, -1 unknown."""
    classes: dict[int, str]
    """Names of the labels that have one."""
    root: str
    """The folder that the paths are relative to."""
    origin: str
    """The list file or the folder."""
    lines: Sequence[int] | np.ndarray | None = None
    """Each image's line in the list file, stored as int64 [n]; None for a folder."""
    notes: tuple[str, ...] = ()
    """What the user should know about how they were read."""
    unlisted: int = 0
    """Multilabel: the label of a class that the list does not mention, 0 or -1."""
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    """The other columns of a CSV file, by name: text [n]."""
    groups: np.ndarray | None = None
    """Each image's group by data.group, such as its patient: text [n]."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "paths", Paths.of(self.paths))
        if self.lines is not None:
            object.__setattr__(self, "lines", np.asarray(self.lines, np.int64))

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def num_classes(self) -> int:
        """One more than the largest label or named label; for multilabel, K."""
        if self.labels.ndim == 2:
            return self.labels.shape[1]
        return max(int(self.labels.max(initial=-1)), *self.classes, -1) + 1

    def image(self, index: int, whole: bool = False) -> Any:
        """The source for `open_image`; `whole`: all other images will be read, too.

        Raises UserError if it cannot be fetched.
        """
        return self.paths[index]

    def file_facts(self) -> Iterator[bytes]:
        """What identifies each file's content: path, size and modification time."""
        for path in self.paths:
            yield file_facts(path)

    def as_stored(self) -> np.ndarray:
        """All positions in the order in which their images are stored, int64 [n]."""
        return np.arange(len(self))

    def where(self, index: int) -> str:
        """`train_list.txt:17`, or the file's path if it comes from a folder."""
        if self.lines is None:
            return readable(self.paths[index])
        return f"{readable(self.origin)}:{self.lines[index]}"

    @property
    def strata(self) -> np.ndarray:
        """Each image's class for splitting and balancing, int64 [n]: its own; for multilabel, its
        rarest; K for an image that is not known to have any."""
        return strata_of(self.labels)

    def relative(self, index: int) -> str:
        """The path below `root`, with forward slashes: independent of where the data is."""
        below_root = self.paths[index].removeprefix(os.path.join(self.root, ""))  # noqa: PTH118
        return below_root.replace(os.sep, "/")

    def digest(self) -> str:
        """sha256 of relative paths and labels, in order: independent of where the data is."""
        hashed, above = hashlib.sha256(), b"\0" + os.path.join(self.root, "").encode(*ENCODING)  # noqa: PTH118
        for number, block in enumerate(Paths.of(self.paths).blocks()):
            names = (b"\0" + block).replace(above, b"\0").replace(os.sep.encode(), b"/")
            hashed.update(names if number else names[1:])
        hashed.update(self.labels.astype("<i8").tobytes())
        return hashed.hexdigest()

    def subset(self, indices: Sequence[int] | np.ndarray) -> Examples:
        """The examples at `indices`, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            paths=Paths.of(self.paths).take(chosen),
            labels=self.labels[chosen],
            lines=None if self.lines is None else np.asarray(self.lines)[chosen],
            columns={name: column[chosen] for name, column in self.columns.items()},
            groups=None if self.groups is None else self.groups[chosen],
        )

    def relabelled(self, new: Mapping[int, int]) -> Examples:
        """The same with labels mapped by `new`; a class without a name is named by its old label.
        Raises UserError for a label that `new` lacks.
        """
        labels = self.labels.tolist()
        stranger = next((i for i, label in enumerate(labels) if label not in new), None)
        if stranger is not None:
            raise UserError(
                f"{self.where(stranger)}: data.relabel=true, but the training list has no image "
                f"with label {labels[stranger]}"
            )
        return replace(
            self,
            labels=np.array([new[label] for label in labels], np.int64),
            classes={label: self.classes.get(old, str(old)) for old, label in new.items()},
        )


def file_facts(path: str) -> bytes:
    """Path, size and modification time of a file, as bytes; for a missing one, its path."""
    name = os.path.abspath(path).encode(*ENCODING)  # noqa: PTH100 (a million of them)
    try:
        found = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):  # a NUL in the path
        return name
    return name + b"\0%d %d\n" % (found.st_size, found.st_mtime_ns)


def strata_of(labels: np.ndarray) -> np.ndarray:
    """`Examples.strata` from labels alone."""
    if labels.ndim == 1:
        return labels
    there = labels == 1
    rarest_first = np.argsort(there.sum(0), kind="stable")
    rarest = rarest_first[there[:, rarest_first].argmax(1)]
    return np.where(there.any(1), rarest, labels.shape[1]).astype(np.int64)


# List files ---------------------------------------------------------------------------------


def read_list(file: Path, root: Path, delimiter: str | None = None) -> Examples:
    """Reads `relative/path label` lines. Raises UserError with file:line, and MalformedLines for
    all lines of another form.

    The label follows the last `delimiter`; None: the last run of whitespace, so paths may contain
    spaces, or a comma, semicolon or bar if the first line has one there. Blank lines are ignored.
    """
    content = _utf8(file)
    notes: tuple[str, ...] = ()
    first = next((line for _, line in _numbered(content)), "")
    if delimiter is None and (found := re.search(r"[,;|](?=\s*\d+$)", first)):
        delimiter = found[0]
        notes = (f"{file}: the labels follow a {delimiter!r}, as in {first!r}",)
    lines = plain_lines(content, delimiter)
    odd: dict[int, bytes | None] = {}
    malformed = Malformed()
    for index in np.flatnonzero(lines.label < 0).tolist():
        line = content[lines.start[index] : lines.end[index]].decode().strip()
        odd[index] = None  # only Unicode blanks
        if line:
            place = f"{file}:{lines.number[index]}"
            with malformed.line():
                path, lines.label[index] = _parse_line(line, delimiter, place)
                odd[index] = os.path.join(root, path).encode(*ENCODING)  # noqa: PTH118
    malformed.refuse()
    there = lines.label >= 0
    if not there.any():
        raise UserError(f"{file}: lists no images; expected lines such as `cat/1.jpg 0`")
    paths = Paths.packed(_joined(content, lines, root, odd))
    names = read_class_names(file.with_name("classes.txt"))
    labels, numbers = lines.label[there], lines.number[there]
    return Examples(paths, labels, names, str(root), str(file), numbers, notes)


def _joined(
    content: bytes, lines: Lines, root: Path, odd: Mapping[int, bytes | None]
) -> Iterator[bytes]:
    """`root` joined with each line's path; `odd` has the lines that are not plain, None: drop."""
    above, plain = os.path.join(root, "").encode(*ENCODING), os.sep == "/"  # noqa: PTH118
    for first in range(0, len(lines.label), BLOCK):
        part = slice(first, first + BLOCK)
        spans = zip(lines.start[part].tolist(), lines.end[part].tolist(), strict=True)
        for index, (start, end) in enumerate(spans, first):
            if index not in odd:
                name = content[start:end]
                yield above + name if plain else os.path.join(above, name)  # noqa: PTH118
            elif (path := odd[index]) is not None:
                yield path


def read_class_names(file: Path) -> dict[int, str]:
    """`label name` lines; empty if there is no such file. Raises UserError with file:line."""
    names: dict[int, str] = {}
    if not file.is_file():
        return names
    for number, line in text_lines(file):
        label, *name = line.split(maxsplit=1)
        if not name or not is_label(label):
            raise UserError(f"{file}:{number}: expected `label name`, such as `0 cat`: {line!r}")
        if int(label) in names:
            raise UserError(f"{file}:{number}: label {label} is named twice; leave one line")
        names[int(label)] = name[0]
    return names


def _parse_line(line: str, delimiter: str | None, place: str) -> tuple[str, int]:
    path, *rest = line.rsplit(delimiter, 1)
    label = rest[0].strip() if rest else ""
    if path.strip() and is_label(label):
        return path.strip(), int(label)
    between = "whitespace" if delimiter is None else repr(delimiter)
    other = re.search(r"([,;|])\s*\d+$", line)
    if other:
        advice = f'; is it data.delimiter="{other[1]}"?'
    elif place.endswith(":1") and re.fullmatch(r"[^,;\t]+([,;\t][^,;\t]+)+", line):
        advice = "; for a table with a header line, name the file .csv or .tsv"
    else:
        advice = ""
    raise UserError(
        f"{place}: expected a path, {between} and a label (a whole number from 0 up), such as "
        f"`cat/1.jpg{delimiter or ' '}0`, got {line!r}{advice}"
    )


def is_label(text: str) -> bool:
    """Whether `text` is a whole number from 0 up."""
    return text.isascii() and text.isdecimal() and len(text) < 10


def text_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of every non-blank line, without BOM and CR. Raises UserError."""
    yield from _numbered(_utf8(file))


def _utf8(file: Path) -> bytes:
    """The content of a UTF-8 text file, without BOM. Raises UserError if it is not UTF-8."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    try:
        content.decode()
    except UnicodeDecodeError as error:
        number = content[: error.start].count(b"\n") + 1
        raise UserError(f"{file}:{number}: is not UTF-8 text; save the file as UTF-8") from error
    return content.removeprefix(codecs.BOM_UTF8)


def _numbered(content: bytes) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(io.BytesIO(content), 1):
        if stripped := line.decode().strip():
            yield number, stripped


def readable(name: str) -> str:
    r"""A file's name as valid text: bytes that are not UTF-8 become `\xe9`."""
    if name.isascii():
        return name
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
