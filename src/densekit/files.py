"""Files that are whole or not there: written beside, flushed to the disk, renamed; the cache."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from densekit.config import UserError


def make_folder(folder: Path) -> None:
    """`folder` and those above it. Raises UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made: {error.strerror}") from error


def cache_folder() -> Path:
    """The user's: $DENSEKIT_CACHE, else $XDG_CACHE_HOME/densekit, else ~/.cache/densekit."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("DENSEKIT_CACHE") or f"{base}/densekit").expanduser()


def temporary(target: Path) -> Path:
    """The name under which this process writes `target`; what is left over was never published."""
    return target.with_name(f".{target.name}.densekit-{os.getpid()}.tmp")


def remove_left_over(*folders: Path) -> None:
    """What killed processes were writing directly in `folders`; nothing that has another name."""
    for folder in folders:
        for file in folder.glob(".*.densekit-*.tmp"):
            file.unlink(missing_ok=True)


def write_atomically(target: Path, content: bytes | memoryview) -> None:
    """Either `target` has all of `content`, on the disk, or it is as it was. Raises UserError."""
    with replacing(target) as file:
        file.write(content)


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[BinaryIO]:
    """A file to write to; when the block ends, `target` is it, on the disk.

    After any error `target` is as it was. Raises UserError where it cannot be written.
    """
    beside = temporary(target)
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)
        _sync_folder(target.parent)
    except OSError as error:
        raise UserError(
            f"{target}: cannot be written: {error.strerror}; what was there before is untouched"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # it has its own name by now, or the disk is read-only
            beside.unlink()


def digest(file: Path, kind: str) -> str:
    """The hexadecimal digest, sha256 or md5, of a file's content."""
    hashed = hashlib.new(kind, usedforsecurity=False)
    with file.open("rb") as content:
        while chunk := content.read(1 << 20):
            hashed.update(chunk)
    return hashed.hexdigest()


def _sync_folder(folder: Path) -> None:
    """The rename itself on the disk; Windows has no such call and needs none."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
