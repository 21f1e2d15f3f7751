"""The cache of decoded images: pixels in shared memory or in a file, mapped by all processes of a
machine.

The pixels are those of `open_image`, so results are the same with and without the cache. A file
is named by a hash of all that its pixels depend on, and is written atomically.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import BinaryIO, NamedTuple
from weakref import WeakKeyDictionary, finalize

import numpy as np
import torch
from torch import Tensor

from densekit import distributed
from densekit.config import UserError
from densekit.data.cache_size import estimate, readable_bytes
from densekit.data.config import DataConfig
from densekit.data.decode import ImageFile, UnreadableImage, open_image
from densekit.data.kept_files import KeptFiles, held, hold, touched
from densekit.data.listing import Examples
from densekit.files import cache_folder, make_folder, replacing
from densekit.progress import bar, say, waiting

HAS_SHARED_MEMORY = hasattr(os, "memfd_create") and Path("/proc/self/fd").exists()
OF_A_THREAD = 64  # images that a thread decodes at a time
LAYOUT = 1  # version of the file's layout
DEPENDED_ON = ("densekit", "numpy", "pillow", "pydicom", "tifffile")
TRAILER = 8  # bytes at a file's end: the offset of its index


class DecodedImages:
    """The decoded images of some Examples, as `write_decoded` wrote them; read-only."""

    def __init__(self, file: str, channels: int, dtype: torch.dtype) -> None:
        """Raises UserError for an incomplete file."""
        self.file, self.channels, self.dtype = file, channels, dtype
        try:
            with open(file, "rb") as content:  # noqa: PTH123 (a name in /proc)
                content.seek(-TRAILER, os.SEEK_END)
                end = int.from_bytes(content.read(), "little")
                content.seek(end)
                self.index = np.load(content)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(
                f"{file}: is not a file of decoded images; remove it ({error})"
            ) from error
        elements = end // dtype.itemsize
        self.pixels = torch.empty(0, dtype=dtype)
        if elements:  # private, but never written to: processes share its pages
            self.pixels = torch.from_file(file, shared=False, size=elements, dtype=dtype)

    def __reduce__(self) -> tuple[type[DecodedImages], tuple[str, int, torch.dtype]]:
        return type(self), (self.file, self.channels, self.dtype)

    def __len__(self) -> int:
        """Images in the cache."""
        return int((self.index[:, 1] > 0).sum())

    def image(self, index: int) -> ImageFile | None:
        """Channels last in memory, as decoded; None if it is not in the cache."""
        start, height, width = self.index[index].tolist()
        if not height:
            return None
        shape, strides = (self.channels, height, width), (1, width * self.channels, self.channels)
        return ImageFile(self.pixels.as_strided(shape, strides, start))


_at_hand: WeakKeyDictionary[Examples, DecodedImages] = WeakKeyDictionary()


def decoded_images(
    examples: Examples, config: DataConfig, skip_bad: bool = False
) -> DecodedImages | None:
    """The run's cache of decoded images by data.cache (None for off), filled if need be.

    All ranks call this; the first rank of each machine decodes for the others. Unreadable images,
    if `skip_bad`, and images for which there is no room are left out. Raises UserError, and
    UnreadableImage for the first image that cannot be read.
    """
    if config.cache not in ("ram", "disk"):
        return None
    if examples not in _at_hand:
        keep = _in_memory if config.cache == "ram" else _on_disk
        file = _of_machine(lambda: keep(examples, config, skip_bad))
        _at_hand[examples] = DecodedImages(file, config.channels, config.scaling.dtype)
    return _at_hand[examples]


class _Kept(NamedTuple):
    file: str
    """Its name."""
    notes: tuple[str, ...] = ()
    """For people."""


def _of_machine(make: Callable[[], _Kept]) -> str:
    """The name of the file that the first rank of this machine makes, however long that takes.
    Raises what any `make` did, on every rank."""
    own: _Kept | UserError | None
    try:
        own = distributed.while_others_wait(make if distributed.local_rank() == 0 else None)
    except UserError as error:
        own = error
    of_ranks = distributed.broadcast_object(distributed.gather_objects(own))
    assert of_ranks is not None
    mistake = next((each for each in of_ranks if isinstance(each, UserError)), None)
    if mistake is not None:
        mistake.shared = True
        raise mistake
    made = [each for each in of_ranks if isinstance(each, _Kept)]
    for note in dict.fromkeys(note for each in made for note in each.notes):
        say(note)
    of_this_machine = of_ranks[distributed.rank() - distributed.local_rank()]
    assert isinstance(of_this_machine, _Kept)
    return of_this_machine.file


def _in_memory(examples: Examples, config: DataConfig, skip_bad: bool) -> _Kept:
    """Memory without a name of its own, which goes with the last process that maps it."""
    descriptor = os.memfd_create("densekit-decoded-images")
    finalize(examples, os.close, descriptor)  # other processes may open it until then
    free = distributed.free_memory()
    room = math.inf if free is None else free / 2
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            count = write_decoded(examples, config, file, skip_bad, room)
    except OSError as error:
        raise UserError(
            f"decoded images cannot be kept in memory: {error.strerror}; set data.cache=off"
        ) from error
    rest = f"{count:,} of {len(examples):,} images fit in the cache; the others are read as files"
    notes = (rest,) if count < len(examples) else ()
    return _Kept(f"/proc/{os.getpid()}/fd/{descriptor}", notes)


def _on_disk(examples: Examples, config: DataConfig, skip_bad: bool) -> _Kept:
    """A file that runs share, by a name that is another where a file or a decoder is another."""
    with waiting(f"looking at the files of {examples.origin}"):
        key = _key(examples, config)
    kept = KeptFiles(folder_of(config), ".pixels", int(config.cache_gib * 2**30))
    target = kept.folder / f"{key}{kept.suffix}"
    notes: list[str] = []

    def note(file: Path, size: int) -> None:
        notes.append(
            f"cache: {file} ({readable_bytes(size)}) was removed, which no run uses, since "
            f"data.cache_gib={config.cache_gib:g}"
        )

    make_folder(kept.folder)
    try:
        with kept.locked(key):
            while (file := held(target)) is None:
                _write(examples, config, skip_bad, kept, target, note)
    except UnreadableImage:
        raise
    except (UserError, OSError) as error:
        free = shutil.disk_usage(kept.folder).free >> 20
        raise UserError(
            f"data.cache=disk: {error}; {kept.folder} has {free:,} MiB free: set data.cache_dir to "
            f"a folder with more space, or data.cache=off"
        ) from error
    touched(target)
    finalize(examples, file.close)  # until then it does not make room
    with kept.locked("room"):
        kept.make_room(0, note)  # which was for as many bytes as were expected
    return _Kept(str(target), tuple(notes))


def _write(
    examples: Examples,
    config: DataConfig,
    skip_bad: bool,
    kept: KeptFiles,
    target: Path,
    note: Callable[[Path, int], None],
) -> None:
    """All pixels to `target`. Raises UserError where files in use leave no room, or the disk none;
    UnreadableImage."""
    expected = estimate(config, [examples])
    with contextlib.ExitStack() as written:
        with kept.locked("room"):
            if expected and not kept.make_room(expected.bytes, note):
                raise UserError(
                    f"{expected}, and what runs use of the folder already, are more than "
                    f"data.cache_gib={config.cache_gib:g}, which can be raised"
                )
            file = written.enter_context(replacing(target))
            hold(file)
        write_decoded(examples, config, file, skip_bad, math.inf)


def folder_of(config: DataConfig) -> Path:
    """The folder of data.cache=disk's files, and of nothing else."""
    above = cache_folder() if config.cache_dir is None else Path(config.cache_dir)
    return above / "pixels"


def _key(examples: Examples, config: DataConfig) -> str:
    """sha256 of all that decoded images depend on."""
    versions = [_version(package) for package in DEPENDED_ON]
    seen = [LAYOUT, config.channels, config.scaling, *versions, examples.digest()]
    hashed = hashlib.sha256(repr(seen).encode())
    for fact in examples.file_facts():
        hashed.update(fact)
    return hashed.hexdigest()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def write_decoded(
    examples: Examples, config: DataConfig, file: BinaryIO, skip_bad: bool, room: float
) -> int:
    """Writes all pixels, the index and its offset -> how many images were written.

    Stops before the first image that would exceed `room` bytes. Raises UnreadableImage, unless
    `skip_bad`.
    """
    index = np.zeros((len(examples), 3), np.int64)  # start, height, width
    start, itemsize = 0, config.scaling.dtype.itemsize
    for number, found in enumerate(_all_pixels(examples, config)):
        if isinstance(found, UnreadableImage):
            if not skip_bad:
                raise found
            continue
        if (start + found.numel()) * itemsize > room:
            break
        pixels = np.ascontiguousarray(found.permute(1, 2, 0).numpy())
        file.write(pixels.data)
        index[number] = start, *pixels.shape[:2]
        start += pixels.size
    np.save(file, index)
    file.write((start * itemsize).to_bytes(TRAILER, "little"))
    return int((index[:, 1] > 0).sum())


def _all_pixels(examples: Examples, config: DataConfig) -> Iterator[Tensor | UnreadableImage]:
    """In order. Threads, not processes: decoders release the GIL."""

    def some(start: int) -> list[Tensor | UnreadableImage]:
        part = range(start, min(start + OF_A_THREAD, len(examples)))
        return [_pixels(examples, index, config) for index in part]

    threads, n = distributed.cores(), len(examples)
    starts = range(0, n, OF_A_THREAD)
    with ThreadPoolExecutor(threads) as pool:
        # a few chunks at a time, since decoded images wait in memory to be written
        rounds = (starts[i : i + 2 * threads] for i in range(0, len(starts), 2 * threads))
        chunks = itertools.chain.from_iterable(pool.map(some, each) for each in rounds)
        yield from bar(itertools.chain.from_iterable(chunks), n, f"decoding {examples.origin}")


def _pixels(examples: Examples, index: int, config: DataConfig) -> Tensor | UnreadableImage:
    try:
        source = examples.image(index, whole=True)
        return open_image(source, config.channels, config.max_pixels, config.scaling).pixels()
    except UnreadableImage as error:
        return error.at(examples.where(index))
