"""Images in shards as Examples: epochs, ranks and resumes behave as with files."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from densekit.config import UserError
from densekit.data.decode import UnreadableImage
from densekit.data.listing import Content, Examples, file_facts
from densekit.data.shards.cache import ShardCache
from densekit.data.shards.index import Shard, index_from_bytes
from densekit.data.shards.place import ShardPlace
from densekit.data.shards.scan import scanned
from densekit.data.shards.spec import ShardSpec, in_folder
from densekit.remote import apart

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class ShardedExamples(Examples):
    """Images in shards; `paths` are their names in the packed list or folder."""

    members: np.ndarray = field(kw_only=True)
    """MEMBER [n]."""
    shards: tuple[Shard, ...] = field(kw_only=True)
    place: ShardPlace = field(kw_only=True)
    has_checksums: bool = field(kw_only=True)

    def image(self, index: int, whole: bool = False) -> Content:
        """Raises UnreadableImage for a corrupt or truncated one."""
        offset, size, shard, crc32 = self.members[index].item()
        name = self.relative(index)
        content = self.place.read(self.shards[shard], offset, size, whole)
        if len(content) < size:
            raise UnreadableImage(name, f"is truncated with its shard after {len(content)} bytes")
        if self.has_checksums and zlib.crc32(content) != crc32:
            raise UnreadableImage(name, "is corrupt: its CRC-32 is not the one in the index")
        return Content(name, content)

    def file_facts(self) -> Iterator[bytes]:
        """Those of the shards, and each image's position in them."""
        for shard in self.shards:
            yield repr(shard).encode()
            yield file_facts(self.place.name(shard))
        yield self.members.tobytes()

    def as_stored(self) -> np.ndarray:
        """Shard after shard."""
        return np.lexsort((self.members["offset"], self.members["shard"]))

    def where(self, index: int) -> str:
        """The shard."""
        return self.place.name(self.shards[self.members["shard"][index]])

    def subset(self, indices: Sequence[int] | np.ndarray) -> ShardedExamples:
        chosen = super().subset(indices)
        assert isinstance(chosen, ShardedExamples)
        return replace(chosen, members=self.members[np.asarray(indices, np.int64)])


def read_together(parts: Sequence[Examples], work: Callable[[], T]) -> T:
    """Runs `work()`, which reads many images of `parts`; remote ones are fetched by one process of

    the machine for all. Raises what `work` raises.
    """
    remote = any(isinstance(part, ShardedExamples) and part.place.is_remote for part in parts)
    return apart(work) if remote else work()


def open_shards(spec: ShardSpec, cache: ShardCache) -> ShardedExamples:
    """The images of `spec`, from the index beside the shards or else from the shards themselves.

    Raises UserError.
    """
    place, file = ShardPlace(spec.folder, cache), in_folder(spec.folder, spec.index_name)
    content = place.content(spec.index_name)
    if content is not None:
        index = index_from_bytes(content, file)
        index = index.of_shards(spec.names, file) if spec.names else index
    elif spec.names:
        index = scanned(spec, place)
    else:
        raise UserError(f"there is no file {file}, or access is denied")
    if not len(index.labels):
        raise UserError(f"{spec.origin}: holds no images")
    return ShardedExamples(
        paths=index.names.below(in_folder(spec.folder, "")),
        labels=index.labels,
        classes=dict(index.classes),
        root=spec.folder,
        origin=spec.origin,
        lines=None if index.is_folder else range(1, len(index.labels) + 1),
        unlisted=index.unlisted,
        columns=index.columns,
        members=index.members,
        shards=index.shards,
        place=place,
        has_checksums=index.has_checksums,
    )
