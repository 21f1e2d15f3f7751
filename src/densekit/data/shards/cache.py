"""The cache of remote shards: a folder of limited size, shared by all processes of a machine.

A shard is fetched whole, in parts at once, checked, and there when it is whole. The one that was
used longest ago makes room, unless a process holds it (`data.kept_files`).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from densekit import remote
from densekit.config import UserError
from densekit.data.config import DataConfig
from densekit.data.kept_files import KeptFiles, held, hold, touched
from densekit.data.shards.index import Shard
from densekit.files import cache_folder, make_folder, replacing

PART = 8 << 20  # bytes of a request
AT_ONCE = 4  # requests for a shard
LOCKS = 1024  # files; two shards seldom share one
TRIES = 3


@dataclass(frozen=True)
class ShardCache:
    """Shared by all runs on a machine that name the same folder."""

    folder: Path
    limit: int
    """Bytes of all shards in it, including those being fetched."""

    @classmethod
    def of(cls, config: DataConfig) -> ShardCache:
        folder = cache_folder() / "shards" if config.cache_dir is None else Path(config.cache_dir)
        return cls(folder, int(config.cache_gib * 2**30))

    @property
    def files(self) -> KeptFiles:
        return KeptFiles(self.folder, ".tar", self.limit)

    def fetched(self, url: str, shard: Shard) -> Path | None:
        """The shard's local file, fetched if need be; it may be evicted at any time.

        None if held shards leave no room for it. Raises UserError if it is missing, differs from
        the index, or cannot be fetched.
        """
        if shard.size > self.limit:
            raise UserError(
                f"{url}: has {shard.size >> 20} MiB, more than data.cache_gib="
                f"{self.limit / 2**30:g}; raise it"
            )
        target = self._target(url, shard)
        if touched(target):
            return target
        make_folder(self.folder)
        with self.files.locked(f"shard-{int(target.stem[:8], 16) % LOCKS}"):
            if touched(target) or remote.apart(lambda: self._fetch(url, shard, target)):
                return target
        return None

    def held(self, url: str, shard: Shard) -> BinaryIO | None:
        """The shard's open file, which does not go before it is closed; None if it is not here."""
        return held(self._target(url, shard))

    def _target(self, url: str, shard: Shard) -> Path:
        """Named by its SHA-256, or if that is unknown, by its URL and version."""
        named = f"{url} {shard.size} {shard.version}"
        return self.folder / f"{shard.sha256 or hashlib.sha256(named.encode()).hexdigest()}.tar"

    def has(self, url: str, shard: Shard) -> bool:
        """Whether the shard is here already."""
        return touched(self._target(url, shard))

    def _fetch(self, url: str, shard: Shard, target: Path) -> bool:
        """Whether there was room to write the shard to `target`. Raises UserError."""
        for tries_left in reversed(range(TRIES)):
            try:
                with contextlib.ExitStack() as written:
                    with self.files.locked("room"):
                        if not self.files.make_room(shard.size):
                            return False
                        file = written.enter_context(replacing(target))
                        hold(file)
                        file.truncate(shard.size)  # which others count from now on
                    _copy(url, shard, file)
                break
            except _OtherBytesError:
                if not tries_left:
                    raise
        return True


class _OtherBytesError(UserError):
    """The fetched bytes differ from the index."""


def _copy(url: str, shard: Shard, file: BinaryIO) -> None:
    size = remote.facts_of(url).size
    if size != shard.size:
        raise UserError(
            f"{url}: has {size:,} bytes, but its index says {shard.size:,}: it is truncated or a "
            f"different file; upload an intact copy, with its index"
        )
    hashed = hashlib.sha256()
    starts = range(0, shard.size, PART)
    sizes = [min(PART, shard.size - start) for start in starts]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for part in pool.map(functools.partial(remote.read_range, url), starts, sizes):
            hashed.update(part)
            file.write(part)
    if shard.sha256 not in (None, hashed.hexdigest()):
        raise _OtherBytesError(
            f"{url}: is corrupt: its SHA-256 is not the one in its index, {TRIES} times; upload "
            f"an intact copy"
        )
