"""The arguments of `densekit predict` as image names: files, folders, lists and S3 prefixes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from densekit.config import UserError
from densekit.data.folders import Found, image_suffixes, images_below
from densekit.data.listing import is_label, readable
from densekit.infer.objects import is_object, objects_below
from densekit.progress import say

LIST_SUFFIX = ".txt"


def image_names(given: Iterable[str]) -> Iterator[str]:
    """Files and objects as given; the images at any depth below a folder or an S3 prefix, sorted;
    the lines of a list.

    A missing file or a folder without images is kept, and becomes a row with its error. Other
    files in a folder or prefix are skipped, and counted on stderr. Raises UserError for a list or
    prefix without images.
    """
    for name in given:
        if is_object(name):
            yield from [name] if _has_image_suffix(name) else _below_prefix(name)
        elif is_list(name):
            yield from listed_names(Path(name))
        elif Path(name).is_dir():
            found = images_below(Path(name))
            if found.paths and found.others:
                _say_left_out(name, found)
            yield from found.paths or [name]
        else:
            yield name


def is_list(name: str) -> bool:
    """Whether it is a list of images, not an image."""
    return name.endswith(LIST_SUFFIX) and Path(name).is_file()


def listed_names(file: Path) -> Iterator[str]:
    """A name for each line, lazily: a path relative to the list's folder, or an s3:// URL.

    The label in a training list's `path label` is dropped. Raises UserError for a list that
    cannot be read or is empty.
    """
    empty = True
    try:
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as lines:
            for line in lines:
                if text := line.strip():
                    empty = False
                    yield _named(text, file.parent)
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    if empty:
        raise UserError(f"{file}: lists no images; expected a path or an s3:// URL on each line")


def _named(text: str, folder: Path) -> str:
    path, *label = text.rsplit(maxsplit=1)
    if not (label and is_label(label[0]) and _has_image_suffix(path)):
        path = text
    return path if is_object(path) else os.path.join(folder, path)  # noqa: PTH118 (millions)


def _below_prefix(url: str) -> Iterator[str]:
    """The images below an S3 prefix. Raises UserError if there are none."""
    others: Counter[str] = Counter()
    none = True
    for name in objects_below(url):
        if _has_image_suffix(name):
            none = False
            yield name
        else:
            others[PurePosixPath(name).suffix.lower()] += 1
    found = Found(others=others)
    if none:
        only = f", only {found.left_out()}" if others else ""
        raise UserError(f"{url}: no images lie below this prefix{only}")
    if others:
        _say_left_out(url, found)


def _has_image_suffix(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in image_suffixes()  # noqa: PTH122 (millions)


def _say_left_out(name: str, found: Found) -> None:
    say(f"{readable(name)}: left out as not images: {found.left_out()}")
