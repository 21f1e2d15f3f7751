"""The cache of remote shards: a folder of limited size, shared by all processes of a machine.

A shard is fetched as a whole, in parallel parts, verified, and renamed into place. The least
recently used shard is evicted, unless a process holds it. Holding is a file lock on the open file,
so whatever a killed process held or was writing is released at once. A process may go on reading
an open file after its eviction.
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

PART = 8 << 20  # bytes per request
AT_ONCE = 4  # parallel requests for a shard
LOCKS = 1024  # lock files; two shards rarely share one
TRIES = 3
UNDER_WAY = ".*.tar.*.tmp"  # names of files being written


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
        if _touched(target):
            return target
        make_folder(self.folder)
        with self._locked(f"shard-{int(target.stem[:8], 16) % LOCKS}"):
            if _touched(target) or remote.apart(lambda: self._fetch(url, shard, target)):
                return target
        return None

    def held(self, url: str, shard: Shard) -> BinaryIO | None:
        """The shard's open file, not evicted before it is closed; None if it is not cached."""
        with contextlib.suppress(FileNotFoundError):
            file = self._target(url, shard).open("rb")
            _hold(file)
            if os.fstat(file.fileno()).st_nlink:
                return file
            file.close()  # it was evicted in between
        return None

    def _target(self, url: str, shard: Shard) -> Path:
        """Named by its SHA-256, or if that is unknown, by its URL and version."""
        named = f"{url} {shard.size} {shard.version}"
        return self.folder / f"{shard.sha256 or hashlib.sha256(named.encode()).hexdigest()}.tar"

    def has(self, url: str, shard: Shard) -> bool:
        """Whether the shard is cached."""
        return _touched(self._target(url, shard))

    def sweep(self) -> None:
        """Removes incomplete files of killed processes."""
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
                        file.truncate(shard.size)  # from now on other processes count it
                    _copy(url, shard, file)
                break
            except _OtherBytesError:
                if not tries_left:
                    raise
        return True

    def _make_room(self, size: int) -> bool:
        """Evicts least recently used shards until `size` more bytes fit; whether they do."""
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
    """Marks it as used now; False if it does not exist."""
    try:
        os.utime(file)
    except FileNotFoundError:
        return False
    return True


def _hold(file: BinaryIO) -> None:
    """Until it is closed. (On Windows an open file cannot be removed anyway.)"""
    if sys.platform != "win32":
        fcntl.flock(file, fcntl.LOCK_SH)


def _removed(file: Path) -> bool:
    """Removes it unless a process holds it; whether it was removed."""
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
