"""The output folder of an export: written to a temporary one and renamed once it has passed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock

from densekit.config import UserError
from densekit.files import digest, make_folder
from densekit.infer.exported import GATE, MODEL_FILES, ExportedConfig, is_exported
from densekit.models.artifact import CONFIG
from densekit.progress import say

NEW, OLD, LOCK = "new", "old", "lock"
WAIT_FOR_LOCK = 5.0  # seconds: the kernel may still be freeing a killed export's lock


def check_free(target: Path, replace: bool) -> None:
    """Raises UserError if the export would overwrite something of the user's."""
    if not target.exists() and not target.is_symlink():
        return
    if not target.is_dir():
        raise UserError(f"{target}: a file, and an export is a folder; choose another --out")
    if not any(target.iterdir()):
        return
    ours = {GATE, CONFIG, *(name for names in MODEL_FILES.values() for name in names)}
    if not is_exported(target) or {entry.name for entry in target.iterdir()} - ours:
        raise UserError(f"{target}: holds something else than an export; choose another --out")
    if not replace:
        raise UserError(
            f"{target}: there is an export already; add --replace, or choose another --out"
        )


@contextlib.contextmanager
def folder_for(target: Path, replace: bool) -> Iterator[Path]:
    """An empty folder on the target's disk, to be published; otherwise it is removed at the end,
    with the parent folders that were created for it.

    It is in a hidden folder beside the target, locked by one process. Leftovers of a killed export
    are removed, and an export that it was about to replace is restored. Raises UserError.
    """
    above = [folder for folder in target.parents if not folder.exists()]
    make_folder(target.parent)
    place = target.with_name(f".{target.name}.densekit-export")
    try:
        with _held(place, target):
            try:
                _recover(place, target)
                check_free(target, replace)
                (place / NEW).mkdir()
                yield place / NEW
            finally:
                shutil.rmtree(place, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # it is not empty
            for folder in above:
                folder.rmdir()


@contextlib.contextmanager
def _held(place: Path, target: Path) -> Iterator[None]:
    """A lock that the kernel releases however the process ends."""
    make_folder(place)
    lock = filelock.FileLock(place / LOCK)
    try:
        lock.acquire(timeout=WAIT_FOR_LOCK)
    except filelock.Timeout as busy:
        raise UserError(f"{target}: another export is writing it; wait for it") from busy
    try:
        yield
    finally:
        lock.release()


def _recover(place: Path, target: Path) -> None:
    """Restores the state before a killed export: see `publish`."""
    if (place / OLD).is_dir() and not target.exists():
        (place / OLD).rename(target)
        say(f"{target}: put back, since an export that was to replace it was killed")
    for name in (NEW, OLD):
        if (place / name).exists():
            shutil.rmtree(place / name)


def write_notes(beside: Path, config: ExportedConfig, gate: dict[str, Any]) -> None:
    """Writes config.json, and last gate.json with the checksums of the model files."""
    (beside / CONFIG).write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")
    files = MODEL_FILES[config.export.to]
    sums = {name: digest(beside / name, "sha256") for name in files}
    text = json.dumps({"sha256": sums, **gate}, indent=2)
    (beside / GATE).write_text(text + "\n", encoding="utf-8")


def publish(new: Path, target: Path) -> None:
    """Renames `new`, of `folder_for`, to `target`; an existing export is replaced.

    If killed between the two renames, the old one stays as OLD, and the next export restores it.
    """
    for file in new.iterdir():
        with file.open("rb") as content:
            os.fsync(content.fileno())
    old = new.with_name(OLD)
    if target.is_dir():
        target.rename(old)
    try:
        new.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
