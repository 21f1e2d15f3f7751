"""Shards from elsewhere in a folder of this machine, up to a size; shared by all processes.

A shard is fetched whole, in parts at once, checked, and there when it is whole. The one that was
used longest ago makes room, unless a process holds it. A file is held by a lock of the system on
it, open, so what a killed process held or was writing is free at once. Who reads an open file may
go on when it has gone.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import sys
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

if sys.platform != "win32":
    import fcntl

PART = 8 << 20  # bytes of a request
AT_ONCE = 4  # requests for a shard
LOCKS = 1024  # files; two shards seldom share one
TRIES = 3
UNDER_WAY = ".*.tar.*.tmp"  # names of files that are being written


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

    def fetched(self, url: str, shard: Shard) -> Path | None:
        """The shard's file here, which is fetched if need be; it may go at any time.

        None where shards that are held leave no room for it. Raises UserError for what is not
        there, is not what the index says, or cannot be had.
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
            if _touched(target) or remote.apart(lambda: self._fetch(url, shard, target)):
                return target
        return None

    def held(self, url: str, shard: Shard) -> BinaryIO | None:
        """The shard's open file, which does not go before it is closed; None if it is not here."""
        with contextlib.suppress(FileNotFoundError):
            file = self._target(url, shard).open("rb")
            _hold(file)
            if os.fstat(file.fileno()).st_nlink:
                return file
            file.close()  # it went between the two
        return None

    def _target(self, url: str, shard: Shard) -> Path:
        """Called by its content, or where nobody said what that is by its place and version."""
        named = f"{url} {shard.size} {shard.version}"
        return self.folder / f"{shard.sha256 or hashlib.sha256(named.encode()).hexdigest()}.tar"

    def has(self, url: str, shard: Shard) -> bool:
        """Whether the shard is here already."""
        return _touched(self._target(url, shard))

    def sweep(self) -> None:
        """Removes what killed processes were writing."""
        for file in self.folder.glob(UNDER_WAY):
            _removed(file)

    def _fetch(self, url: str, shard: Shard, target: Path) -> bool:
        """Whether there was room to write the shard to `target`. Raises UserError."""
        for tries_left in reversed(range(TRIES)):
            try:
                with contextlib.ExitStack() as written:
                    with self._locked("room"):
                        if not self._make_room(shard.size):
                            return False
                        file = written.enter_context(replacing(target))
                        _hold(file)
                        file.truncate(shard.size)  # which others count from now on
                    _copy(url, shard, file)
                break
            except _OtherBytesError:
                if not tries_left:
                    raise
        return True

    def _make_room(self, size: int) -> bool:
        """Removes what was used longest ago until `size` more bytes fit; whether they do."""
        self.sweep()
        free = self.limit
        files = []
        for file in [*self.folder.glob("*.tar"), *self.folder.glob(UNDER_WAY)]:
            with contextlib.suppress(FileNotFoundError):
                found = file.stat()
                free -= found.st_size
                files.append((found.st_mtime_ns, found.st_size, file))
        for _, freed, file in sorted(files):
            if free >= size:
                break
            if _removed(file):
                free += freed
        return free >= size

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


def _hold(file: BinaryIO) -> None:
    """Until it is closed. (On Windows a file that is open cannot be removed anyway.)"""
    if sys.platform != "win32":
        fcntl.flock(file, fcntl.LOCK_SH)


def _removed(file: Path) -> bool:
    """Whether it is gone now, since no process holds it."""
    try:
        with contextlib.ExitStack() as opened:
            if sys.platform != "win32":
                fcntl.flock(opened.enter_context(file.open("r+b")), fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.unlink()
    except FileNotFoundError:
        return True
    except (BlockingIOError, PermissionError):
        return False
    return True


class _OtherBytesError(UserError):
    """What came is not what the index says."""


def _copy(url: str, shard: Shard, file: BinaryIO) -> None:
    size = remote.facts_of(url).size
    if size != shard.size:
        raise UserError(
            f"{url}: has {size:,} bytes, but its index says {shard.size:,}: it is cut off, or is "
            f"another; put an intact copy there, and its index beside it"
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
            f"{url}: is damaged: its SHA-256 is not the one in its index, {TRIES} times; put an "
            f"intact copy there"
        )
