"""Parses how users name shards: `s3://bucket/train-{000000..001023}.tar`, or their index."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from densekit.config import UserError
from densekit.data.shards.index import INDEX_SUFFIX
from densekit.remote import is_url

TAR_SUFFIX = ".tar"
LOCAL = "file://"
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
MOST_SHARDS = 1_000_000


@dataclass(frozen=True)
class ShardSpec:
    """Shards of one folder."""

    folder: str
    """A path, or a URL."""
    names: tuple[str, ...]
    """The shards' file names; empty if the index names them."""
    index_name: str
    """The index's file name, whether or not it exists."""

    @property
    def origin(self) -> str:
        """For messages."""
        first = in_folder(self.folder, (*self.names, self.index_name)[0])
        return f"{first} ... {self.names[-1]}" if len(self.names) > 1 else first

    def exists(self) -> bool:
        """Whether the first shard or the index exists; always true for a URL, which is checked
        later."""
        return is_url(self.folder) or Path(self.origin.partition(" ... ")[0]).is_file()


def is_shards(spec: str) -> bool:
    """Whether `spec` names shards: tar files, or the index beside them."""
    return spec.endswith((TAR_SUFFIX, INDEX_SUFFIX))


def parse_shards(spec: str) -> ShardSpec:
    """`spec` with its braces expanded. Raises UserError."""
    folder, name = os.path.split(spec.removeprefix(LOCAL))
    if "{" in folder:
        raise UserError(f"{spec}: braces belong in the file name: train-{{000000..000012}}.tar")
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


def in_folder(folder: str, name: str) -> str:
    """The path or URL of a file in a folder."""
    return f"{folder}/{name}" if is_url(folder) else os.path.join(folder, name)  # noqa: PTH118
