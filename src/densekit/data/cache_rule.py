"""data.cache: whether a run keeps its decoded images, and where."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from densekit import distributed
from densekit.config import UserError
from densekit.data.cache_size import Estimate, estimate, readable_bytes
from densekit.data.config import CachePlace, DataConfig
from densekit.data.decoded import HAS_SHARED_MEMORY, folder_of
from densekit.data.listing import Examples
from densekit.data.shards.examples import ShardedExamples
from densekit.remote import is_url

AUTO_SHARE, ASKED_SHARE = 4, 2  # of the free memory: auto takes a quarter at most, ram a half


class Choice(NamedTuple):
    """How data.cache was resolved."""

    place: CachePlace
    notes: tuple[str, ...]
    """For the user."""


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
    if found and config.cache == "disk":
        why = _why_no_files(found, config.cache_gib)
    elif found:
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


def _why_no_files(found: Estimate, most: float) -> str | None:
    if found.bytes <= most * 2**30:
        return None
    return f"{found}, are more than data.cache_gib={most:g} GiB (raise it)"


def _why_no_memory(found: Estimate, share: int) -> str | None:
    if not HAS_SHARED_MEMORY:
        return "this system lacks the shared memory that it needs; data.cache=disk uses files"
    free = distributed.free_memory() or 0
    if found.bytes * share <= free:
        return None
    part = "a quarter" if share == AUTO_SHARE else "half"
    return f"{found}, are more than {part} of the free memory, {readable_bytes(free)}"
