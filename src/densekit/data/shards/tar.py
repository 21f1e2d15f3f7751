"""Reads and writes shards: tar files in WebDataset's form.

Consecutive members with the same key are a sample: `cat/17.jpg` and `cat/17.cls` have the key
`cat/17`, which ends at the first dot of the name. `.cls` holds a label in digits; `.json` holds one
or several.
"""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

from densekit.config import UserError
from densekit.data.folders import image_suffixes
from densekit.data.listing import is_label

ImageLabels = int | tuple[frozenset[int], frozenset[int]]
"""The class; for multilabel, the present and the unknown classes."""


class TarSample(NamedTuple):
    """An image in a shard."""

    key: str
    suffix: str
    """The image's suffix, with its dot."""
    offset: int
    """Of the image's first byte in the shard."""
    size: int
    """Bytes."""
    labels: ImageLabels


class _Member(NamedTuple):
    key: str
    suffix: str
    offset: int
    size: int


def write_samples(file: BinaryIO, samples: Iterable[tuple[str, str, bytes, ImageLabels]]) -> None:
    """Writes samples of (key, suffix, content, labels). Equal samples give equal bytes."""
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key, suffix, content, labels in samples:
            _add(tar, f"{key}{suffix}", content)
            _add(tar, *_label_member(key, labels))


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _label_member(key: str, labels: ImageLabels) -> tuple[str, bytes]:
    if isinstance(labels, int):
        return f"{key}.cls", str(labels).encode()
    there, unknown = map(sorted, labels)
    return f"{key}.json", json.dumps({"labels": there, "unknown": unknown}).encode()


def read_samples(file: BinaryIO, name: str) -> Iterator[TarSample]:
    """The samples of a shard, from its headers and labels alone; `name` is for messages.

    Raises UserError, with shard and key, if it is corrupt, truncated, or not of this form.
    """
    for key, group in itertools.groupby(_members(file, name), lambda member: member.key):
        members = list(group)
        images = [member for member in members if _is_image(member.suffix)]
        if len(images) != 1:
            has = ", ".join(member.suffix for member in members)
            raise UserError(
                f"{name}: {key}: expected one image and its label, as {key}.jpg and {key}.cls, "
                f"found {has}"
            )
        labels = _labels(file, members, f"{name}: {key}")
        yield TarSample(key, images[0].suffix, images[0].offset, images[0].size, labels)


def _members(file: BinaryIO, name: str) -> Iterator[_Member]:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    last = "its beginning"
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in filter(tarfile.TarInfo.isfile, tar):
                if member.offset_data + member.size > size:
                    raise UserError(f"{name}: is truncated in {member.name}; {_REMEDY}")
                last = member.name
                folder, slash, base = last.rpartition("/")
                stem, dot, suffix = base.partition(".")
                yield _Member(folder + slash + stem, dot + suffix, member.offset_data, member.size)
            file.seek(tar.offset)
        end = file.read(tarfile.BLOCKSIZE)
    except (tarfile.TarError, OSError, ValueError) as error:
        raise UserError(f"{name}: is corrupt after {last}: {error}; {_REMEDY}") from error
    # tarfile takes a missing or corrupt header for the end of the archive, a block of zeros
    if any(end) or len(end) < tarfile.BLOCKSIZE:
        raise UserError(
            f"{name}: is {'corrupt' if any(end) else 'truncated'} after {last}; {_REMEDY}"
        )


_REMEDY = "put an intact copy in its place"


def _is_image(suffix: str) -> bool:
    return f".{suffix.rpartition('.')[2].lower()}" in image_suffixes()


def _labels(file: BinaryIO, members: list[_Member], place: str) -> ImageLabels:
    by_suffix = {member.suffix: member for member in members}
    for suffix in (".cls", ".json"):
        if suffix in by_suffix:
            file.seek(by_suffix[suffix].offset)
            text = file.read(by_suffix[suffix].size)
            found = (_from_digits if suffix == ".cls" else _from_json)(text)
            if found is None:
                raise UserError(f"{place}{suffix}: holds no label: {text[:40]!r}")
            return found
    raise UserError(f"{place}: has no label: expected a .cls with a number, or a .json")


def _from_digits(text: bytes) -> ImageLabels | None:
    label = text.decode("ascii", "replace").strip()
    return int(label) if is_label(label) else None


def _from_json(text: bytes) -> ImageLabels | None:
    """`{"label": 3}` or `cls`; `{"labels": [0, 2], "unknown": [1]}`."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    if not isinstance(found, dict):
        return None
    single = found.get("label", found.get("cls"))
    if _are_labels([single]):
        return single
    sets = [found.get("labels"), found.get("unknown", [])]
    if all(isinstance(labels, list) and _are_labels(labels) for labels in sets):
        there, unknown = map(frozenset, sets)
        return there, unknown
    return None


def _are_labels(found: list[Any]) -> bool:
    return all(type(label) is int and is_label(str(label)) for label in found)
