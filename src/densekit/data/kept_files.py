"""A folder of files that can be had again, up to a size: those used longest ago make room.

Who uses a file holds it, by a lock of the system on it, open: what is held does not go, and what a
killed process held or was writing is free at once.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import filelock

from densekit.config import UserError

if sys.platform != "win32":
    import fcntl


@dataclass(frozen=True)
class KeptFiles:
    """Of all runs on a machine that name the same folder."""

    folder: Path
    suffix: str
    limit: int
    """Bytes of all of them, those that are being written included."""

    def make_room(self, size: int, on_removed: Callable[[Path, int], None] | None = None) -> bool:
        """Removes what was used longest ago until `size` more bytes fit; whether they do.

        Only under `locked("room")`. `on_removed` is told each file and its bytes.
        """
        self.sweep()
        free = self.limit
        files = []
        for file in [*self.folder.glob(f"*{self.suffix}"), *self._under_way()]:
            with contextlib.suppress(FileNotFoundError):
                found = file.stat()
                free -= found.st_size
                files.append((found.st_mtime_ns, found.st_size, file))
        for _, freed, file in sorted(files):
            if free >= size:
                break
            if _removed(file):
                free += freed
                if on_removed is not None:
                    on_removed(file, freed)
        return free >= size

    def sweep(self) -> None:
        """Removes what killed processes were writing."""
        for file in self._under_way():
            _removed(file)

    def _under_way(self) -> Iterator[Path]:
        return self.folder.glob(f".*{self.suffix}.*.tmp")

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """One process at a time. Raises UserError where the folder cannot be used."""
        try:
            with filelock.FileLock(self.folder / f".lock-{name}"):
                yield
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be used: {error.strerror}") from error


def touched(file: Path) -> bool:
    """Whether it is there; then it is noted as used now."""
    try:
        os.utime(file)
    except FileNotFoundError:
        return False
    return True


def hold(file: BinaryIO) -> None:
    """Until it is closed. (On Windows a file that is open cannot be removed anyway.)"""
    if sys.platform != "win32":
        fcntl.flock(file, fcntl.LOCK_SH)


def held(target: Path) -> BinaryIO | None:
    """The open file, which does not go before it is closed; None if it is not here."""
    with contextlib.suppress(FileNotFoundError):
        file = target.open("rb")
        hold(file)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # it went between the two
    return None


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
