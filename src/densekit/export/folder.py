"""The folder of an export: made beside, renamed when it has passed; never over the user's own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from densekit.config import UserError
from densekit.files import digest, make_folder, temporary
from densekit.infer.exported import GATE, MODEL_FILES, ExportedConfig, is_exported
from densekit.models.artifact import CONFIG


def check_free(target: Path, replace: bool) -> None:
    """That nothing of the user's is lost. Raises UserError."""
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
def folder_beside(target: Path) -> Iterator[Path]:
    """An empty folder on the same disk, gone at the end unless it was published, and so are the
    folders above it that were not there."""
    above = [folder for folder in target.parents if not folder.exists()]
    make_folder(target.parent)
    beside = temporary(target)
    make_folder(beside)
    try:
        yield beside
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        with contextlib.suppress(OSError):  # there is something in it
            for folder in above:
                folder.rmdir()


def write_notes(beside: Path, config: ExportedConfig, gate: dict[str, Any]) -> None:
    """config.json, and last gate.json with the checksums of the model's files."""
    (beside / CONFIG).write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")
    files = MODEL_FILES[config.export.to]
    sums = {name: digest(beside / name, "sha256") for name in files}
    text = json.dumps({"sha256": sums, **gate}, indent=2)
    (beside / GATE).write_text(text + "\n", encoding="utf-8")


def publish(beside: Path, target: Path) -> None:
    """`beside` becomes `target`; an export that was there goes."""
    for file in beside.iterdir():
        with file.open("rb") as content:
            os.fsync(content.fileno())
    if target.is_dir():
        old = temporary(beside)
        target.rename(old)
        try:
            beside.rename(target)
        except OSError:
            old.rename(target)
            raise
        shutil.rmtree(old)
    else:
        beside.rename(target)
