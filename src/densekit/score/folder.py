"""The output folder of `densekit predict --out`: the plan, and the finished parts.

    _manifest.json         network, images and options; progress
    _inputs.parquet        the image names in order, a row group per part
    part-000000.parquet    a part's rows, written atomically

Parquet readers ignore names that begin with `_` or `.`, so the folder reads as one table, in the
order of the images. To resume is to compute the missing parts.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import filelock
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from densekit.config import Section, UserError
from densekit.files import make_folder, remove_left_over, replacing, write_atomically
from densekit.progress import waiting

MANIFEST_FORMAT = 1
MANIFEST, NAMES = "_manifest.json", "_inputs.parquet"
LOCK_WAIT = 5.0  # seconds: the kernel may still be freeing a killed run's lock
VALUE_LENGTH = 60  # characters of a value in a message
# Names as bytes, since file names may not be valid UTF-8.
NAMES_SCHEMA = pa.schema([pa.field("file", pa.binary(), nullable=False)])


class Request(Section):
    """Everything that decides the rows: a folder is resumed only with the same request."""

    network: str
    """sha256 of the network, its preprocessing and its classes."""
    inputs: tuple[str, ...]
    """As typed."""
    lists: dict[str, str]
    """The list files among them -> sha256 of their content."""
    started_in: str | None
    """The folder that relative paths are relative to; None: there are none."""
    part_size: int
    topk: int
    batch_size: int
    max_pixels: int
    device: str
    precision: str
    engine: str
    tta: str

    def differences(self, other: Request) -> list[str]:
        """`topk=5, not topk=3` for each value that differs."""
        ours, theirs = self.model_dump(), other.model_dump()
        return [
            f"{key}={_short(ours[key])}, not {key}={_short(theirs[key])}"
            for key in ours
            if ours[key] != theirs[key]
        ]


class Done(Section):
    """The content of the finished parts."""

    parts: int = 0
    images: int = 0
    failed: int = 0
    """Rows with an error."""

    def __add__(self, other: Done) -> Done:
        return Done(
            parts=self.parts + other.parts,
            images=self.images + other.images,
            failed=self.failed + other.failed,
        )


class Manifest(Section):
    """_manifest.json."""

    format: int
    densekit: str
    """The version that started it."""
    request: Request
    images: int
    names_sha256: str
    """sha256 of the image names, in order, joined by NUL."""
    done: Done = Done()
    """As of the last command that finished or was asked to stop; the part files themselves are
    authoritative."""


@dataclass(frozen=True)
class ResultFolder:
    """An output folder and its manifest."""

    path: Path
    manifest: Manifest

    @property
    def parts(self) -> int:
        return -(-self.manifest.images // self.manifest.request.part_size)

    def images_in(self, part: int) -> int:
        size = self.manifest.request.part_size
        return min(size, self.manifest.images - part * size)

    def file(self, part: int) -> Path:
        return self.path / f"part-{part:06d}.parquet"

    def names(self, part: int) -> list[str]:
        """The images of a part, in order."""
        table = pq.ParquetFile(self.path / NAMES).read_row_group(part)
        return [os.fsdecode(name) for name in table.column("file").to_pylist()]

    def look(self, parts: Iterable[int]) -> tuple[list[int], Done]:
        """Which of the parts are missing, and the content of the others.

        A part that is unreadable or has a wrong number of rows counts as missing.
        """
        missing, done = [], Done()
        for part in parts:
            rows = self.images_in(part)
            errors = count_errors(self.file(part), rows)
            if errors is None:
                missing.append(part)
            else:
                done += Done(parts=1, images=rows, failed=errors)
        return missing, done

    def note(self, done: Done) -> None:
        """Writes the progress to the manifest."""
        _write(self.path, self.manifest.model_copy(update={"done": done}))


def count_errors(file: Path, rows: int) -> int | None:
    """The number of rows with an error in a part; None if it is missing or incomplete."""
    try:
        metadata = pq.read_metadata(file)
    except (FileNotFoundError, pa.ArrowInvalid):
        return None
    if metadata.num_rows != rows:
        return None
    errors = metadata.schema.names.index("error")
    groups = [metadata.row_group(n).column(errors) for n in range(metadata.num_row_groups)]
    return sum(group.num_values - group.statistics.null_count for group in groups)


@contextmanager
def opened_folder(
    path: Path, request: Request, names: Iterable[str], version: str
) -> Iterator[ResultFolder]:
    """The folder, locked until the block ends: a new one, or one of the same request.

    `names` is only read if the names are not stored yet. Raises UserError for a folder of another
    request, with other content, or in use.
    """
    if path.is_dir():
        _refuse_foreign(path)
    make_folder(path)
    with _held(path):
        remove_left_over(path)
        if (path / MANIFEST).exists():
            manifest = _read(path)
            _refuse_other(path, manifest.request, request)
        else:
            with waiting("listing the images", line=True):
                images, digest = write_names(path / NAMES, names, request.part_size)
            manifest = Manifest(
                format=MANIFEST_FORMAT,
                densekit=version,
                request=request,
                images=images,
                names_sha256=digest,
            )
            _write(path, manifest)
        yield ResultFolder(path, manifest)


def write_names(file: Path, names: Iterable[str], part_size: int) -> tuple[int, str]:
    """Writes the names as they come, a row group per part; returns their number and sha256."""
    count, hashed, rest = 0, hashlib.sha256(), iter(names)
    with (
        replacing(file) as out,
        pq.ParquetWriter(out, NAMES_SCHEMA, compression="zstd", use_dictionary=False) as writer,
    ):
        while part := [os.fsencode(name) for name in islice(rest, part_size)]:
            hashed.update(b"\0" * bool(count) + b"\0".join(part))
            writer.write_table(pa.table([part], schema=NAMES_SCHEMA), row_group_size=part_size)
            count += len(part)
    return count, hashed.hexdigest()


def _refuse_foreign(path: Path) -> None:
    ours = {MANIFEST, NAMES}
    stranger = next((f.name for f in path.iterdir() if f.name[0] != "." and f.name not in ours), "")
    if stranger and not (path / MANIFEST).exists():
        raise UserError(
            f"--out {path}: holds files that are not results ({stranger}, ...); give a new folder"
        )


def _refuse_other(path: Path, theirs: Request, ours: Request) -> None:
    changed = theirs.differences(ours)
    if changed:
        raise UserError(
            f"--out {path}: was begun with {'; '.join(changed)}; leave these as they were to go "
            f"on, or give a new folder"
        )


def _read(path: Path) -> Manifest:
    file = path / MANIFEST
    try:
        content = json.loads(file.read_bytes())
        if content["format"] != MANIFEST_FORMAT:
            raise UserError(
                f"{file}: has format {content['format']}, this densekit reads format "
                f"{MANIFEST_FORMAT}; go on with the densekit that wrote it, or give a new folder"
            )
        return Manifest.model_validate(content)
    except (OSError, json.JSONDecodeError, KeyError, TypeError, ValidationError) as error:
        raise UserError(f"{file}: is corrupt; give a new folder ({error})") from error


def _write(path: Path, manifest: Manifest) -> None:
    text = json.dumps(manifest.model_dump(mode="json"), indent=2)
    write_atomically(path / MANIFEST, f"{text}\n".encode())


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= VALUE_LENGTH else f"{text[:VALUE_LENGTH]}..."


@contextmanager
def _held(path: Path) -> Iterator[None]:
    lock = filelock.FileLock(path / ".lock")
    try:
        lock.acquire(timeout=LOCK_WAIT)
    except filelock.Timeout as busy:
        raise UserError(f"--out {path}: another command is writing there; wait for it") from busy
    except OSError as error:
        raise UserError(f"--out {path}: cannot be locked: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()
