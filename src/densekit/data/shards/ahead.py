"""Prefetches the next shards while the current ones are read.

A process beside each rank's loader pins the shards that the rank still needs in the cache; that of
a machine's first rank also fetches the next ones. If it fails to fetch one, the loader fetches it
when needed and reports the error. So this process affects waiting times only.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import BinaryIO, NamedTuple

import numpy as np

from densekit import distributed
from densekit.data.listing import Examples
from densekit.data.shards.cache import ShardCache
from densekit.data.shards.examples import ShardedExamples
from densekit.data.workers import IGNORED, START_METHOD, signals_blocked, start_worker

if sys.platform != "win32":
    import resource

SHARDS_AHEAD = 16  # shards
SHARDS_AT_ONCE = 4  # fetched at the same time
OTHER_FILES = 64  # files that the process may have open besides shards


class ReadingPlan(NamedTuple):
    """The steps to read, counted from 0 over all epochs."""

    order: Callable[[int], np.ndarray]
    """Maps an epoch to positions in the Examples, int64 [n]."""
    batch_size: int
    steps_per_epoch: int
    start: int
    """The first step."""
    steps: int
    """One more than the last."""


class ShardUse(NamedTuple):
    """A shard's use in an epoch."""

    shard: int
    first: int
    """The first step that reads it."""
    last: int


def shard_uses(plan: ReadingPlan, shard_of: np.ndarray) -> Iterator[ShardUse]:
    """All uses, ordered by first step; `shard_of` [n] is each image's shard."""
    per_epoch, size = plan.steps_per_epoch, plan.batch_size
    for epoch in range(plan.start // per_epoch, -(-plan.steps // per_epoch)):
        begin = max(plan.start, epoch * per_epoch)
        stop = min(plan.steps, (epoch + 1) * per_epoch)
        images = plan.order(epoch)[(begin % per_epoch) * size :][: (stop - begin) * size]
        shards, first = np.unique(shard_of[images], return_index=True)
        _, from_end = np.unique(shard_of[images[::-1]], return_index=True)
        steps = begin + np.stack([first, len(images) - 1 - from_end]) // size
        for use in np.argsort(first):
            yield ShardUse(int(shards[use]), *steps[:, use].tolist())


@contextlib.contextmanager
def fetching_ahead(examples: Examples, plan: ReadingPlan) -> Iterator[Callable[[int], None]]:
    """Prefetches during the block, which receives a function to call with each step that was read.

    Does nothing for images that are on this machine already.
    """
    if not isinstance(examples, ShardedExamples) or not examples.place.is_remote:
        yield lambda step: None
        return
    context = multiprocessing.get_context(START_METHOD)
    theirs, ours = context.Pipe(duplex=False)
    with signals_blocked():
        process = context.Process(  # type: ignore[attr-defined]
            target=_keep, args=(examples, plan, theirs), daemon=True
        )
        process.start()
    theirs.close()
    try:
        yield functools.partial(_tell, ours)
    finally:
        ours.close()
        process.kill()  # it may be in the middle of a fetch
        process.join()
        examples.place.cache.files.sweep()


def _tell(to: Connection, step: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # it was killed; the loader fetches
        to.send(step)


def _keep(examples: ShardedExamples, plan: ReadingPlan, read: Connection) -> None:
    start_worker(0)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # sent by multiprocessing at exit
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED)
    with ThreadPoolExecutor(SHARDS_AT_ONCE) as pool:
        keeper = _Keeper(examples, plan, pool, fetches=distributed.local_rank() == 0)
        step = plan.start
        while True:
            keeper.begin(step)
            try:
                step = read.recv() + 1
                while read.poll():
                    step = read.recv() + 1
            except EOFError:
                return


class _Keeper:
    """Holds the shards that a rank still needs or will need next, as far as the cache has room."""

    def __init__(
        self, examples: ShardedExamples, plan: ReadingPlan, pool: ThreadPoolExecutor, fetches: bool
    ) -> None:
        self.place, self.shards = examples.place, examples.shards
        self.to_come = shard_uses(plan, examples.members["shard"])
        self.pool, self.fetches = pool, fetches
        largest = max(shard.size for shard in examples.shards)
        self.most = min(self.place.cache.limit // largest, _most_files())
        self.wanted: list[ShardUse] = []
        self.held: dict[ShardUse, BinaryIO] = {}
        self.coming: dict[ShardUse, Future[BinaryIO | None]] = {}

    def begin(self, step: int) -> None:
        """Steps before `step` have been read."""
        self.wanted = [use for use in self.wanted if use.last >= step]
        ahead = sum(use.first > step for use in self.wanted)
        while len(self.wanted) < self.most and ahead < SHARDS_AHEAD:
            if (coming := next(self.to_come, None)) is None:
                break
            self.wanted.append(coming)
            ahead += coming.first > step
        for use in self.wanted:
            if use not in self.held and use not in self.coming:
                self._get(use)
        self._let_go(step)

    def _get(self, use: ShardUse) -> None:
        shard = self.shards[use.shard]
        file = self.place.cache.held(self.place.name(shard), shard)
        if file is not None:
            self.held[use] = file
        elif self.fetches:
            self.coming[use] = self.pool.submit(self._fetched, use)

    def _fetched(self, use: ShardUse) -> BinaryIO | None:
        """None if there is no room yet."""
        shard = self.shards[use.shard]
        name = self.place.name(shard)
        self.place.cache.fetched(name, shard)
        return self.place.cache.held(name, shard)

    def _let_go(self, step: int) -> None:
        """Takes in finished fetches, and releases shards that are no longer needed."""
        for use in [use for use, future in self.coming.items() if future.done()]:
            if self.coming[use].exception() and use in self.wanted:
                continue  # no retry: the loader that needs it reports the error
            future = self.coming.pop(use)
            file = None if future.exception() else future.result()
            if file is not None:
                self.held[use] = file
            elif use.first <= step:
                _say_full(self.place.cache)
        for use in self.held.keys() - set(self.wanted):
            self.held.pop(use).close()


@functools.cache
def _say_full(cache: ShardCache) -> None:
    print(
        f"{cache.folder}: is full of shards in use, perhaps by other runs; images of other "
        f"shards are requested one by one, which is slow: raise data.cache_gib="
        f"{cache.limit / 2**30:g}, or lower data.shuffle_window",
        file=sys.stderr,
        flush=True,
    )


def _most_files() -> int:
    if sys.platform == "win32":
        return 512 - OTHER_FILES
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return (most if most != resource.RLIM_INFINITY else 1 << 20) - OTHER_FILES
