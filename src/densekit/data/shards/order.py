"""data.shuffle_window: an order of images in which few shards are read at a time.

Like the order without it, that with it is a function of seed and epoch alone.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from densekit.config import UserError
from densekit.data.balance import balanced_order
from densekit.data.config import DataConfig
from densekit.data.dataset import SHARDS, epoch_order
from densekit.data.listing import Examples
from densekit.data.shards.examples import ShardedExamples

REMOTE_WINDOW = 16  # shards


def resolve_window(asked: int | Literal["auto"], examples: Examples) -> int:
    """The window in shards, 0 for none; auto: REMOTE_WINDOW of shards from elsewhere, else none.

    Raises UserError where it means nothing, and where the cache cannot hold it.
    """
    if not isinstance(examples, ShardedExamples):
        if asked in (0, "auto"):
            return 0
        raise UserError(f"data.shuffle_window={asked} is for shards, not for {examples.origin}")
    remote = examples.place.is_remote
    window = (REMOTE_WINDOW if remote else 0) if asked == "auto" else asked
    largest = max(shard.size for shard in examples.shards)
    held = min(window + 2 if window else len(examples.shards), len(examples.shards))
    if remote and held * largest > examples.place.cache.limit:
        raise UserError(
            f"{examples.origin}: data.shuffle_window={window} reads {held} shards at a time, of up "
            f"to {largest / 2**30:.2f} GiB: more than data.cache_gib="
            f"{examples.place.cache.limit / 2**30:g}; raise that, or lower the window"
        )
    return window


def reading_order(examples: Examples, config: DataConfig, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch by all options that decide on it, int64 [n]. Raises UserError."""
    if config.balance:
        order = balanced_order(seed, epoch, examples.strata, config.balance)
    else:
        order = epoch_order(seed, epoch, len(examples))
    window = resolve_window(config.shuffle_window, examples)
    if not window or not isinstance(examples, ShardedExamples):
        return order
    return windowed(order, examples.members["shard"][order], window, seed, epoch)


def windowed(
    order: np.ndarray, shard_of: np.ndarray, window: int, seed: int, epoch: int
) -> np.ndarray:
    """`order`, int64 [n], sorted anew so that an image is among those of `window` other shards.

    `shard_of` [n] is each one's shard. Shards take turns, shuffled; an image of the shard whose
    turn is s stands at random between s and s + window, so that no more than window + 1 shards
    are begun and not yet done. In the first and last windows the order is that of `order`.
    """
    _, own = np.unique(shard_of, return_inverse=True)
    shards = int(own.max(initial=-1)) + 1
    source = np.random.SeedSequence([SHARDS, epoch, seed])
    generator = np.random.Generator(np.random.PCG64(source))
    turn = generator.permutation(shards)[own]
    place = np.clip(turn + window * generator.random(len(order)), window, shards)
    return order[np.argsort(place, kind="stable")]
