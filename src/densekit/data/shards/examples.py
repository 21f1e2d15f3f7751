"""Images in shards as Examples: the order of epochs, ranks and resumes are those of files."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from densekit.config import UserError
from densekit.data.decode import UnreadableImage
from densekit.data.listing import Content, Examples
from densekit.data.shards.index import (
    INDEX_SUFFIX,
    MEMBER,
    Names,
    Shard,
    ShardIndex,
    index_from_bytes,
)
from densekit.data.shards.tar import TarSample, read_samples
from densekit.progress import bar

TAR_SUFFIX = ".tar"
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
MOST_SHARDS = 1_000_000


@dataclass(frozen=True)
class ShardSpec:
    """What `folder/train-{000000..000012}.tar` or `folder/train-index.npz` names."""

    folder: str
    names: tuple[str, ...]
    """Of the shards; empty for an index, which says them itself."""
    index_name: str
    """The index's name, whether or not there is one."""

    @property
    def origin(self) -> str:
        """For messages."""
        if not self.names:
            return os.path.join(self.folder, self.index_name)  # noqa: PTH118
        first = os.path.join(self.folder, self.names[0])  # noqa: PTH118
        return first if len(self.names) == 1 else f"{first} ... {self.names[-1]}"

    def exists(self) -> bool:
        """Whether the first shard or the index is there."""
        return Path(self.folder, (*self.names, self.index_name)[0]).is_file()


def is_shards(spec: str) -> bool:
    """Whether `spec` names shards: tar files, or the index beside them."""
    return spec.endswith((TAR_SUFFIX, INDEX_SUFFIX))


def parse_shards(spec: str) -> ShardSpec:
    """`spec` with its braces taken apart. Raises UserError."""
    folder, name = os.path.split(spec)
    if "{" in folder:
        raise UserError(
            f"{spec}: braces go into the name of the file: train-{{000000..000012}}.tar"
        )
    if name.endswith(INDEX_SUFFIX):
        return ShardSpec(folder, (), name)
    names = tuple(_expanded(name, spec))
    return ShardSpec(folder, names, re.sub(r"\d*\.tar$", "", names[0]) + "index.npz")


def _expanded(name: str, spec: str) -> list[str]:
    found = RANGE.search(name)
    if found is None:
        if "{" in name:
            raise UserError(f"{spec}: expected a range of numbers such as {{000000..000012}}")
        return [name]
    first, last = found.groups()
    numbers = range(int(first), int(last) + 1)
    if not 0 < len(numbers) <= MOST_SHARDS:
        raise UserError(f"{spec}: {{{first}..{last}}} are {len(numbers)} shards")
    rest = _expanded(name[found.end() :], spec)
    return [f"{name[: found.start()]}{n:0{len(first)}d}{more}" for n in numbers for more in rest]


@dataclass(frozen=True, eq=False)
class ShardedExamples(Examples):
    """Images in shards; `paths` are their names in the list or folder that was packed."""

    members: np.ndarray = field(kw_only=True)
    """MEMBER [n]."""
    shards: tuple[Shard, ...] = field(kw_only=True)
    has_checksums: bool = field(kw_only=True)

    def image(self, index: int) -> Content:
        """Raises UnreadableImage for one that is damaged or cut off."""
        offset, size, shard, crc32 = self.members[index].item()
        name = self.relative(index)
        content = read_part(self._place(shard), offset, size)
        if len(content) < size:
            raise UnreadableImage(name, f"is cut off with its shard after {len(content)} bytes")
        if self.has_checksums and zlib.crc32(content) != crc32:
            raise UnreadableImage(name, "is damaged: its bytes are not those that were packed")
        return Content(name, content)

    def where(self, index: int) -> str:
        """The shard."""
        return self._place(int(self.members["shard"][index]))

    def subset(self, indices: Sequence[int] | np.ndarray) -> ShardedExamples:
        chosen = super().subset(indices)
        assert isinstance(chosen, ShardedExamples)
        return replace(chosen, members=self.members[np.asarray(indices, np.int64)])

    def _place(self, shard: int) -> str:
        return os.path.join(self.root, self.shards[shard].name)  # noqa: PTH118


def read_part(file: str, offset: int, size: int) -> bytes:
    """`size` bytes of a file, fewer at its end. Raises UnreadableImage."""
    try:
        with open(file, "rb", buffering=0) as shard:  # noqa: PTH123 (for each image)
            shard.seek(offset)
            return shard.read(size)
    except FileNotFoundError as error:
        raise UnreadableImage(file, "there is no such shard") from error
    except OSError as error:
        raise UnreadableImage(file, f"cannot be read: {error.strerror}") from error


def open_shards(spec: ShardSpec) -> ShardedExamples:
    """The images of `spec`, by the index beside the shards or else by the shards themselves.

    Raises UserError.
    """
    file = Path(spec.folder, spec.index_name)
    if file.is_file():
        index = index_from_bytes(file.read_bytes(), str(file))
        index = index.of_shards(spec.names, str(file)) if spec.names else index
    elif spec.names:
        index = index_shards(spec)
    else:
        raise UserError(f"there is no file {file}")
    if not len(index.labels):
        raise UserError(f"{spec.origin}: holds no images")
    root = spec.folder
    return ShardedExamples(
        paths=Names(index.names.text, index.names.ends, os.path.join(root, "")),  # noqa: PTH118
        labels=index.labels,
        classes=dict(index.classes),
        root=root,
        origin=spec.origin,
        lines=None if index.is_folder else range(1, len(index.labels) + 1),
        unlisted=index.unlisted,
        columns=index.columns,
        members=index.members,
        shards=index.shards,
        has_checksums=index.has_checksums,
    )


def index_shards(spec: ShardSpec) -> ShardIndex:
    """The index of shards that have none, in their own order. Raises UserError."""
    found: list[list[TarSample]] = []
    shards = []
    for name in bar(spec.names, len(spec.names), f"indexing {spec.origin}"):
        path = Path(spec.folder, name)
        try:
            with path.open("rb") as file:
                found.append(list(read_samples(file, str(path))))
            shards.append(Shard(name, path.stat().st_size))
        except FileNotFoundError as error:
            raise UserError(f"there is no file {path}") from error
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    samples = [sample for each in found for sample in each]
    members = np.zeros(len(samples), MEMBER)
    members["offset"] = [sample.offset for sample in samples]
    members["size"] = [sample.size for sample in samples]
    members["shard"] = np.repeat(np.arange(len(found)), [len(each) for each in found])
    names = Names.of(sample.key + sample.suffix for sample in samples)
    labels = _label_array(samples, spec.origin)
    return ShardIndex(tuple(shards), members, labels, names, {}, has_checksums=False)


def _label_array(samples: Sequence[TarSample], origin: str) -> np.ndarray:
    """int64 [n], or int8 [n, K]. Raises UserError where only some have several classes."""
    single = [sample.labels for sample in samples if isinstance(sample.labels, int)]
    several = [sample.labels for sample in samples if not isinstance(sample.labels, int)]
    if single and several:
        raise UserError(f"{origin}: some images have one class and some have several")
    if not several:
        return np.array(single, np.int64)
    count = max((label for sets in several for some in sets for label in some), default=-1) + 1
    labels = np.zeros((len(several), count), np.int8)
    for row, (there, unknown) in zip(labels, several, strict=True):
        row[list(there)], row[list(unknown)] = 1, -1
    return labels
