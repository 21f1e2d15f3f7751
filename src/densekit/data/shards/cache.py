"""Shards from elsewhere in a folder of this machine, up to a size; shared by all processes.

A shard is fetched whole, in parts at once, checked, and there when it is whole. The one that was
used longest ago makes room. A process that reads an open file may go on when it has gone.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import filelock

from densekit import remote
from densekit.config import UserError
from densekit.data.config import DataConfig
from densekit.data.shards.index import Shard
from densekit.files import cache_folder, make_folder, replacing

PART = 8 << 20  # bytes of a request
AT_ONCE = 4  # requests for a shard
LOCKS = 64  # files; two shards seldom share one
DEAD_AFTER = 600.0  # seconds without a byte, requests tried again included
TRIES = 3


@dataclass(frozen=True)
class ShardCache:
    """Of all runs on a machine that name the same folder."""

    folder: Path
    limit: int
    """Bytes of all shards in it, those that are fetched included."""

    @classmethod
    def of(cls, config: DataConfig) -> ShardCache:
        folder = cache_folder() / "shards" if config.cache_dir is None else Path(config.cache_dir)
        return cls(folder, int(config.cache_gib * 2**30))

    def fetched(self, url: str, shard: Shard) -> Path:
        """The shard's file here, which is fetched if need be; it may go at any time.

        Raises UserError for what is not there, is not what the index says, or cannot be had.
        """
        if shard.size > self.limit:
            raise UserError(
                f"{url}: has {shard.size >> 20} MiB, more than data.cache_gib="
                f"{self.limit / 2**30:g}; raise it"
            )
        target = self._target(url, shard)
        if _touched(target):
            return target
        make_folder(self.folder)
        with self._locked(f"shard-{int(target.stem[:8], 16) % LOCKS}"):
            if not _touched(target):
                self._make_room(shard.size)
                remote.apart(lambda: _fetch(url, shard, target))
        return target

    def _target(self, url: str, shard: Shard) -> Path:
        """Called by its content, or where nobody said what that is by its place and version."""
        named = f"{url} {shard.size} {shard.version}"
        return self.folder / f"{shard.sha256 or hashlib.sha256(named.encode()).hexdigest()}.tar"

    def has(self, url: str, shard: Shard) -> bool:
        """Whether the shard is here already."""
        return _touched(self._target(url, shard))

    def _make_room(self, size: int) -> None:
        """Removes what was used longest ago until `size` more bytes fit."""
        with self._locked("room"):
            under_way = 0
            for file in self.folder.glob(".*.tmp"):
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - file.stat().st_mtime > DEAD_AFTER:
                        file.unlink()
                    else:
                        under_way += 1
            files = []
            for file in self.folder.glob("*.tar"):
                with contextlib.suppress(FileNotFoundError):
                    found = file.stat()
                    files.append((found.st_mtime_ns, found.st_size, file))
            free = self.limit - sum(each[1] for each in files) - size * under_way
            for _, freed, file in sorted(files):
                if free >= size:
                    break
                file.unlink(missing_ok=True)
                free += freed

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        try:
            with filelock.FileLock(self.folder / f".lock-{name}"):
                yield
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be used: {error.strerror}") from error


def _touched(file: Path) -> bool:
    """Whether it is there; then it is noted as used now."""
    try:
        os.utime(file)
    except FileNotFoundError:
        return False
    return True


class _OtherBytesError(UserError):
    """What came is not what the index says."""


def _fetch(url: str, shard: Shard, target: Path) -> None:
    """Writes the shard to `target`. Raises UserError."""
    size = remote.facts_of(url).size
    if size != shard.size:
        raise UserError(
            f"{url}: has {size:,} bytes, but its index says {shard.size:,}: it is cut off, or is "
            f"another; put an intact copy there, and its index beside it"
        )
    for tries_left in reversed(range(TRIES)):
        try:
            with replacing(target) as file:
                _copy(url, shard, file)
            return
        except _OtherBytesError:
            if not tries_left:
                raise


def _copy(url: str, shard: Shard, file: BinaryIO) -> None:
    hashed = hashlib.sha256()
    starts = range(0, shard.size, PART)
    sizes = [min(PART, shard.size - start) for start in starts]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for part in pool.map(functools.partial(remote.read_range, url), starts, sizes):
            hashed.update(part)
            file.write(part)
    if shard.sha256 not in (None, hashed.hexdigest()):
        raise _OtherBytesError(
            f"{url}: is damaged: its SHA-256 is not the one in its index, {TRIES} times; put an "
            f"intact copy there"
        )
