"""data.shuffle_window: shuffles so that few shards are read at a time.

The order stays a function of seed and epoch alone.
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
    """The window in shards, 0 for none; auto: REMOTE_WINDOW for remote shards, else none.

    Raises UserError if the images are not shards, or if the cache cannot hold the window.
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
    """An epoch's order by all options that affect it, int64 [n]. Raises UserError."""
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
    """`order`, int64 [n], reordered so that each image is mixed with those of `window` other

    shards.
    `shard_of` [n] is each image's shard. Shards are shuffled; the images of the s-th get random
    places between s and s + window, so that at most window + 1 shards are open at a time. In the
    first and last windows images keep the order of `order`.
    """
    _, own = np.unique(shard_of, return_inverse=True)
    shards = int(own.max(initial=-1)) + 1
    source = np.random.SeedSequence([SHARDS, epoch, seed])
    generator = np.random.Generator(np.random.PCG64(source))
    turn = generator.permutation(shards)[own]
    place = np.clip(turn + window * generator.random(len(order)), window, shards)
    return order[np.argsort(place, kind="stable")]
