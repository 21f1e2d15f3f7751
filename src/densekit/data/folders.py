"""Folders of class folders, read as torchvision's ImageFolder reads them.

The sorted names are labels 0, 1, ...; images may be at any depth. Files left out are counted.
"""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from densekit.config import UserError
from densekit.data.listing import Examples, readable
from densekit.data.pixels import SUFFIXES

LEFT_OUT = 5  # suffixes in a message
# Folders that systems and archivers create; hidden ones are left out, too.
NO_DATA = frozenset(
    ("__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")
)
# Formats that PIL registers but reads through another program, or not at all.
NO_PIXELS = frozenset(("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"))


def read_folder(folder: Path) -> Examples:
    """Reads one folder per class, images at any depth below it; labels are 0, 1, ... by sorted
    name.

    Raises UserError for a folder without class folders, and for a class folder without images.
    """
    names = class_folders(folder)
    if not names:
        image = next(iter(images_below(folder).paths), None)
        what = f"images such as {Path(image).name}, but" if image else "no images and"
        raise UserError(
            f"{folder}: holds {what} no class folders; make one folder per class, such as "
            f"{folder / 'cat' / '1.jpg'}, or give a list file"
        )
    found_in = [images_below(folder / name) for name in names]
    for name, found in zip(names, found_in, strict=True):
        if not found.paths:
            others = f", only {found.left_out()}" if found.others else ""
            raise UserError(
                f"{folder / name}: this class folder holds no images that can be read{others}; "
                f"add some, or remove the folder"
            )
    counts = [len(found.paths) for found in found_in]
    return Examples(
        paths=[path for found in found_in for path in found.paths],
        labels=np.repeat(np.arange(len(names), dtype=np.int64), counts),
        classes={label: readable(name) for label, name in enumerate(names)},
        root=str(folder),
        origin=str(folder),
        notes=_notes(folder, found_in),
    )


def class_folders(folder: Path) -> list[str]:
    """Sorted names of the subfolders that may be classes or parts. Raises UserError."""
    return sorted(e.name for e in _entries(str(folder)) if e.is_dir())


@dataclass
class Found:
    """The files below a folder."""

    paths: list[str] = field(default_factory=list)
    """The images, in ImageFolder's order."""
    others: Counter[str] = field(default_factory=Counter)
    """How many other files there are, by suffix."""
    links: list[str] = field(default_factory=list)
    """Links to folders that are not followed."""

    def left_out(self) -> str:
        """The files that are not images, as `6 .txt, 1 .xyz`; empty if there are none."""
        ordered = sorted(self.others.items(), key=lambda item: (-item[1], item[0]))
        shown = [f"{n} {suffix or 'without a suffix'}" for suffix, n in ordered]
        more = [f"{len(shown) - LEFT_OUT} other kinds"] if len(shown) > LEFT_OUT else []
        return ", ".join(shown[:LEFT_OUT] + more)


def images_below(folder: Path) -> Found:
    """The images at any depth, hidden ones left out. Raises UserError.

    Links to folders are followed, except to a folder that is already read or that contains the
    link: images would be read twice, or get another class's label.
    """
    found, walked = Found(), []
    top = os.path.realpath(folder)
    seen, pending = {top}, [(str(folder), top)]
    while pending:
        parent, real = pending.pop()
        names = []
        for entry in _entries(parent):
            if not entry.is_dir():
                names += [entry.name] if _is_image(entry, found.others) else []
                continue
            link = entry.is_symlink()
            target = os.path.realpath(entry.path) if link else os.path.join(real, entry.name)  # noqa: PTH118
            if target in seen or (link and f"{real}{os.sep}".startswith(f"{target}{os.sep}")):
                found.links.append(entry.path)
            else:
                seen.add(target)
                pending.append((entry.path, target))
        walked.append((parent, names))
    for parent, names in sorted(walked):
        found.paths += [os.path.join(parent, name) for name in sorted(names)]  # noqa: PTH118
    return found


@functools.cache
def image_suffixes() -> frozenset[str]:
    """The suffixes of all formats that can be read: PIL's, .npy and DICOM."""
    Image.init()
    formats = set(Image.OPEN) - NO_PIXELS
    return SUFFIXES | frozenset(
        s for s, format_ in Image.registered_extensions().items() if format_ in formats
    )


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """Entries that are neither hidden nor in NO_DATA, links last."""
    try:
        with os.scandir(folder) as entries:
            found = [e for e in entries if not e.name.startswith(".") and e.name not in NO_DATA]
    except OSError as error:
        raise UserError(f"{folder}: cannot be read: {error.strerror}") from error
    return sorted(found, key=lambda entry: (entry.is_symlink(), entry.name))


def _is_image(entry: os.DirEntry[str], others: Counter[str]) -> bool:
    """Whether a file counts as an image; if not, it is counted in `others`.

    A broken link does, so that reading it reports an error with its name.
    """
    suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 (a million of them)
    regular = entry.is_file() or entry.is_symlink()
    if suffix in image_suffixes() and regular:
        return True
    others[suffix if regular else f"{suffix} that are no regular files"] += 1
    return False


def _notes(folder: Path, found_in: Sequence[Found]) -> tuple[str, ...]:
    """Notes on files that the user may have expected to be read."""
    notes = []
    together = Found()
    for found in found_in:
        together.others.update(found.others)
        together.links += found.links
    if together.others:
        notes.append(f"{folder}: left out as not images: {together.left_out()}")
    notes += [
        f"{link}: not followed, since its folder is already read or contains the link"
        for link in together.links
    ]
    beside: Counter[str] = Counter()
    loose = sum(_is_image(e, beside) for e in _entries(str(folder)) if not e.is_dir())
    if loose:
        notes.append(f"{folder}: {loose} images outside the class folders are left out")
    return tuple(map(readable, notes))
