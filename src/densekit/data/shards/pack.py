"""`densekit data pack`: packs images and labels into shards of equal size, with an index.

Shards are written atomically, so the same command resumes after a kill; every shard, old or new, is
read again for the index. Training images are spread over the shards by a fixed permutation, since
a window of shards should hold all classes; the index keeps their order.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

import filelock
import numpy as np

from densekit import distributed
from densekit.config import UserError
from densekit.data.config import Task
from densekit.data.decode import UnreadableImage, content_of
from densekit.data.holdout import Side
from densekit.data.listing import Content, Examples
from densekit.data.multilabel import Labelling
from densekit.data.paths import Paths
from densekit.data.shards.index import (
    INDEX_SUFFIX,
    MEMBER,
    Shard,
    ShardIndex,
    index_from_bytes,
)
from densekit.data.shards.shrink import shrunk, suffix_of
from densekit.data.shards.spec import TAR_SUFFIX
from densekit.data.shards.tar import ImageLabels, read_samples, write_samples
from densekit.data.splits import find_part, locate_images, open_examples
from densekit.files import make_folder, remove_left_over, replacing, write_atomically
from densekit.progress import bar


@dataclass(frozen=True)
class PackOptions:
    """The options of a pack, which a resuming command has to repeat."""

    shard_images: int = 1024
    """Images in each shard but the last."""
    resize: int | None = None
    """Short side in pixels that larger images are shrunk to; None: files are kept unchanged."""
    quality: int = 90
    """JPEG quality of shrunk images."""
    shuffle: bool = True
    """Whether images are spread over the shards; False: in the order of the list."""


class Packed(NamedTuple):
    """The result of a pack."""

    split: str
    images: int
    shards: int
    bytes: int
    """Total size of the shards."""
    written: int
    """Shards that this command wrote; the others existed."""
    seconds: float


def pack_splits(
    source: str,
    folder: Path,
    split: str | None,
    task: str,
    options: PackOptions,
    threads: int | None = None,
) -> tuple[list[Packed], list[str]]:
    """Packs `source` as `split`; None: both splits of a data set, else training. Only training
    images are spread over the shards. Also returns notes on how they were read. Raises UserError.
    """
    labels: Task | None = next((each for each in get_args(Task) if each == task), None)
    one: Side | None = next((each for each in get_args(Side) if each == split), None)
    if labels is None or one != split:
        raise UserError(f"expected --task {'|'.join(get_args(Task))} and --split train|val")
    place = locate_images(source)
    whole = isinstance(place, Path) and place.is_dir() and find_part(place, "val") is not None
    splits: list[Side] = ["train", "val"] if whole else ["train"]
    packed: list[Packed] = []
    notes: list[str] = []
    for each in splits if one is None else [one]:
        examples = open_examples(source, labelling=Labelling(labels), split=each)
        notes += examples.notes
        asked = replace(options, shuffle=each == "train")
        packed.append(pack(examples, folder, each, asked, threads))
    return packed, notes


def pack(
    examples: Examples, folder: Path, split: str, options: PackOptions, threads: int | None = None
) -> Packed:
    """Writes `folder`/`split`-000000.tar, ... and their index. Raises UserError."""
    began = time.monotonic()
    make_folder(folder)
    with _held(folder):
        job = _Job(examples, folder, split, options)
        job.begin()
        starts = range(0, len(examples), options.shard_images)
        with ThreadPoolExecutor(threads or distributed.cores()) as pool:
            packed = pool.map(job.shard, range(len(starts)))
            found = list(bar(packed, len(starts), f"packing {split}"))
        shards = tuple(shard for shard, _, _ in found)
        index = job.index(shards, np.concatenate([members for _, members, _ in found]))
        write_atomically(job.index_file, index.to_bytes())
        job.plan_file.unlink(missing_ok=True)
    size = sum(shard.size for shard in shards)
    written = sum(fresh for _, _, fresh in found)
    seconds = time.monotonic() - began
    return Packed(split, len(examples), len(shards), size, written, seconds)


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """One command at a time. Raises UserError."""
    lock = filelock.FileLock(folder / ".pack.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as busy:
        raise UserError(f"{folder}: another command is packing into this folder") from busy
    try:
        yield
    finally:
        lock.release()


class _Job:
    """The shards of one split."""

    def __init__(self, examples: Examples, folder: Path, split: str, options: PackOptions) -> None:
        self.examples, self.folder, self.split, self.options = examples, folder, split, options
        self.index_file = folder / f"{split}{INDEX_SUFFIX}"
        self.plan_file = folder / f"{split}-pack.json"
        n = len(examples)
        self.known: dict[str, str | None] = {}
        self.order = np.arange(n)
        if options.shuffle:
            self.order = np.random.Generator(np.random.PCG64(0)).permutation(n)

    @property
    def plan(self) -> dict[str, Any]:
        return {**asdict(self.options), "images": self.examples.digest()}

    def begin(self) -> None:
        """Checks the folder and writes the plan. Raises UserError if it holds anything else."""
        before = self._planned_before()
        if before is None:
            stranger = next(self.folder.glob(f"{self.split}-*{TAR_SUFFIX}"), None)
            if stranger is not None:
                raise UserError(
                    f"{stranger}: exists already and was not packed here; pack into another folder"
                )
            write_atomically(self.plan_file, json.dumps(self.plan, indent=2).encode())
            return
        changed = [
            "the images or labels differ"
            if key == "images"
            else f"{key} was {before.get(key)} and is now {value}"
            for key, value in self.plan.items()
            if before.get(key) != value
        ]
        if changed:
            raise UserError(
                f"{self.folder}: holds {self.split} shards packed with other settings: "
                f"{'; '.join(changed)}; pack into another folder, or remove them"
            )
        remove_left_over(self.folder)

    def _planned_before(self) -> dict[str, Any] | None:
        if self.index_file.is_file():
            index = index_from_bytes(self.index_file.read_bytes(), str(self.index_file))
            self.known = {shard.name: shard.sha256 for shard in index.shards}
            return dict(index.packed)
        if not self.plan_file.is_file():
            return None
        return json.loads(self.plan_file.read_text())

    def shard(self, number: int) -> tuple[Shard, np.ndarray, bool]:
        """The shard, its images' positions, and whether it was written now. Raises UserError."""
        per = self.options.shard_images
        images = self.order[number * per : (number + 1) * per].tolist()
        file = self.folder / f"{self.split}-{number:06d}{TAR_SUFFIX}"
        fresh = not file.exists()
        if fresh:
            with replacing(file) as out:
                write_samples(out, (self._sample(index) for index in images))
        shard, members = _places(file, number, [_key(index) for index in images])
        if not fresh and shard.sha256 != self.known.get(shard.name, shard.sha256):
            raise UserError(
                f"{file}: is corrupt: its SHA-256 is not the one in {self.index_file.name}; remove "
                f"it and pack again"
            )
        return shard, members, fresh

    def _sample(self, index: int) -> tuple[str, str, bytes, ImageLabels]:
        try:
            found = content_of(self.examples.image(index, whole=True))
            suffix = suffix_of(found)
            if self.options.resize is not None:
                small = shrunk(found, self.options.resize, self.options.quality)
                if small is not None:
                    found, suffix = Content(found.name, small), ".jpg"
        except UnreadableImage as error:
            raise error.at(self.examples.where(index)) from error
        return _key(index), suffix, found.content, _labels_of(self.examples.labels[index])

    def index(self, shards: tuple[Shard, ...], in_shards: np.ndarray) -> ShardIndex:
        """The index, from the members in the order of the shards."""
        members = np.empty_like(in_shards)
        members[self.order] = in_shards
        examples = self.examples
        return ShardIndex(
            shards=shards,
            members=members,
            labels=examples.labels,
            names=Paths.of(examples.relative(i) for i in range(len(examples))),
            classes=examples.classes,
            is_folder=examples.lines is None,
            unlisted=examples.unlisted,
            packed=self.plan,
            columns=examples.columns,
        )


def _key(index: int) -> str:
    return f"{index:09d}"


def _labels_of(own: np.ndarray) -> ImageLabels:
    if own.ndim == 0:
        return int(own)
    there, unknown = (np.flatnonzero(own == value).tolist() for value in (1, -1))
    return frozenset(there), frozenset(unknown)


def _places(file: Path, number: int, keys: list[str]) -> tuple[Shard, np.ndarray]:
    """A written shard's entries for the index. Raises UserError if it holds other images."""
    with (
        file.open("rb") as opened,
        mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        samples = list(read_samples(opened, str(file)))
        if [sample.key for sample in samples] != keys:
            raise UserError(f"{file}: holds other images than planned; remove it and pack again")
        members = np.empty(len(samples), MEMBER)
        for row, (_, _, offset, size, _) in zip(members, samples, strict=True):
            row["offset"], row["size"], row["shard"] = offset, size, number
            row["crc32"] = zlib.crc32(content[offset : offset + size])
        digest = hashlib.sha256(content).hexdigest()
        return Shard(file.name, len(content), digest), members
