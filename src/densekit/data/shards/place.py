"""Reads shards: local files, or object storage through the cache."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from densekit.config import UserError
from densekit.data.decode import UnreadableImage
from densekit.data.shards.cache import ShardCache
from densekit.data.shards.index import Shard
from densekit.data.shards.spec import in_folder
from densekit.remote import NotThere, apart, facts_of, is_url, read_range, read_url

ASKED_AT_ONCE = 32  # parallel requests for the sizes of shards


@dataclass(frozen=True)
class ShardPlace:
    """A folder of shards."""

    folder: str
    """A path, or a URL."""
    cache: ShardCache

    @property
    def is_remote(self) -> bool:
        """Whether shards are fetched."""
        return is_url(self.folder)

    def name(self, shard: Shard) -> str:
        """The path or URL of a shard."""
        return in_folder(self.folder, shard.name)

    def read(self, shard: Shard, offset: int, size: int, whole: bool) -> bytes:
        """`size` bytes of a shard, fewer at its end; `whole`: more of it will be read.

        Raises UserError, and UnreadableImage for a local shard.
        """
        name = self.name(shard)
        if not self.is_remote:
            try:
                return _read_part(name, offset, size)
            except FileNotFoundError as error:
                raise UnreadableImage(name, "there is no such shard") from error
            except OSError as error:
                raise UnreadableImage(name, f"cannot be read: {error.strerror}") from error
        if not whole and not self.cache.has(name, shard):
            return apart(lambda: read_range(name, offset, size))
        while (file := self.cache.fetched(name, shard)) is not None:
            with contextlib.suppress(FileNotFoundError):  # it was evicted
                return _read_part(file, offset, size)
        return apart(lambda: read_range(name, offset, size))

    def file(self, shard: Shard) -> Path:
        """The whole shard as a local file. Raises UserError."""
        name = self.name(shard)
        file = self.cache.fetched(name, shard) if self.is_remote else Path(name)
        if file is None:
            raise UserError(
                f"{self.cache.folder}: is full of shards that other runs use; raise "
                f"data.cache_gib={self.cache.limit / 2**30:g}, or name another data.cache_dir"
            )
        return file

    def content(self, name: str) -> bytes | None:
        """The content of another file of the folder; None if it is missing. Raises UserError."""
        place = in_folder(self.folder, name)
        try:
            return apart(lambda: read_url(place)) if self.is_remote else Path(place).read_bytes()
        except (NotThere, FileNotFoundError):
            return None
        except OSError as error:
            raise UserError(f"{place}: cannot be read: {error.strerror}") from error

    def shards(self, names: tuple[str, ...]) -> tuple[Shard, ...]:
        """Size and version of shards without an index. Raises UserError."""
        places = [in_folder(self.folder, name) for name in names]
        if self.is_remote:
            facts = apart(lambda: _facts(places))
            pairs = zip(names, facts, strict=True)
            return tuple(Shard(name, each.size, None, each.version) for name, each in pairs)
        found = []
        for name, place in zip(names, places, strict=True):
            try:
                stat = Path(place).stat()
            except OSError as error:
                raise UserError(f"{place}: {error.strerror}") from error
            found.append(Shard(name, stat.st_size, None, str(stat.st_mtime_ns)))
        return tuple(found)


def _facts(urls: list[str]) -> list:
    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        return list(pool.map(facts_of, urls))


def _read_part(file: str | Path, offset: int, size: int) -> bytes:
    with open(file, "rb", buffering=0) as shard:  # noqa: PTH123 (for each image)
        shard.seek(offset)
        return shard.read(size)
