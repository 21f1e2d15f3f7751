"""data.cache: whether a run keeps its decoded images, and where."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from densekit import distributed
from densekit.config import UserError
from densekit.data.config import CachePlace, DataConfig
from densekit.data.decode import open_image
from densekit.data.decoded import HAS_SHARED_MEMORY, folder_of
from densekit.data.listing import Examples
from densekit.data.shards.examples import ShardedExamples
from densekit.remote import is_url

AUTO_SHARE, ASKED_SHARE = 4, 2  # at most a quarter of the free memory for auto, half for ram
SIZED = 64  # images of each split from which the size of all is estimated


class Choice(NamedTuple):
    """How data.cache was resolved."""

    place: CachePlace
    notes: tuple[str, ...]
    """For the user."""


class Estimate(NamedTuple):
    """The size of all decoded images, estimated from a sample."""

    images: int
    bytes: int
    height: int
    width: int
    alike: bool
    """Whether the whole sample has this size; else it is the median."""

    def __str__(self) -> str:
        size = f"{'' if self.alike else 'about '}{self.width}x{self.height}"
        return f"{readable_bytes(self.bytes)}, {self.images:,} images of {size}"


def choose_cache(config: DataConfig, parts: Sequence[Examples], epochs: int) -> Choice:
    """Where to keep the decoded images of `parts`. Raises UserError if data.cache cannot work.

    `auto` keeps them in memory if that changes no result, saves time and leaves room:

    ==============================================  ===
    data.decode=scaled: pixels depend on the crop   off
    data.decode=gpu: other pixels                   off
    a program's own Dataset; shards from elsewhere  off
    one epoch: each image is decoded once           off
    no memory that processes share (not Linux)      off
    more than a quarter of the free memory          off
    else                                            ram
    ==============================================  ===
    """
    if config.cache == "off":
        return Choice("off", ())
    why = _why_not_exact(config, parts)
    if config.cache == "auto":
        why = why or _why_not_worth_it(parts, epochs)
    found = None if why else estimate(config, parts)
    if found and config.cache != "disk":
        why = _why_no_memory(found, AUTO_SHARE if config.cache == "auto" else ASKED_SHARE)
    if why and config.cache != "auto":
        raise UserError(f"data.cache={config.cache}: {why}; set data.cache=off")
    if why or found is None:  # None: no image can be read, which the reader will report
        return Choice("off", (f"cache: off, since {why}",) if why else ())
    if config.cache == "disk":
        folder = folder_of(config)
        return Choice("disk", (f"cache: {found}, in {folder}; its files may be deleted",))
    return Choice("ram", (f"cache: {found}, in memory",))


def _why_not_exact(config: DataConfig, parts: Sequence[Examples]) -> str | None:
    if config.decode == "scaled":
        return "data.decode=scaled decodes each crop at a scale of its own"
    if config.decode == "gpu":
        return "data.decode=gpu decodes files on the GPU"
    return next((each.why_not_cached for each in parts if each.why_not_cached), None)


def _why_not_worth_it(parts: Sequence[Examples], epochs: int) -> str | None:
    if epochs == 1:
        return "one epoch decodes each image once"
    if any(isinstance(each, ShardedExamples) and is_url(each.place.folder) for each in parts):
        return "remote shards are cached as files"
    return None


def _why_no_memory(found: Estimate, share: int) -> str | None:
    if not HAS_SHARED_MEMORY:
        return "this system lacks the shared memory that it needs; data.cache=disk uses files"
    free = distributed.free_memory() or 0
    if found.bytes * share <= free:
        return None
    part = "a quarter" if share == AUTO_SHARE else "half"
    return f"{found}, are more than {part} of the free memory, {readable_bytes(free)}"


def estimate(config: DataConfig, parts: Sequence[Examples]) -> Estimate | None:
    """None if no image of the sample can be read."""
    sizes: list[tuple[int, int]] = []
    pixels = 0.0
    for examples in parts:
        of_part = list(_sampled(examples, config))
        if of_part:
            pixels += len(examples) * float(np.mean([h * w for h, w in of_part]))
        sizes += of_part
    if not sizes:
        return None
    height, width = np.median(np.array(sizes), 0).astype(int).tolist()
    each = config.channels * config.scaling.dtype.itemsize
    images = sum(map(len, parts))
    return Estimate(images, round(pixels * each), height, width, len(set(sizes)) == 1)


def _sampled(examples: Examples, config: DataConfig) -> Iterator[tuple[int, int]]:
    """Height and width of readable images spread over all."""
    last, channels, limit = len(examples) - 1, config.channels, config.max_pixels
    for index in np.unique(np.linspace(0, last, min(last + 1, SIZED)).astype(int)).tolist():
        try:
            image = open_image(examples.image(index), channels, limit, config.scaling)
        except UserError:
            continue
        yield image.height, image.width


def readable_bytes(count: float) -> str:
    """168 MB, 7.2 GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(1, round(count / 1e6))} MB"
