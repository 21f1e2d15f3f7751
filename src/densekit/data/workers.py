"""Loader processes: starting them, reading batches from them, and their failures.

Workers ignore SIGINT and SIGTERM, because a run that is asked to stop needs them to finish its
step. They end with the main process, even if it is killed.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import re
import shutil
import signal
import sys
import weakref
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter, _MultiProcessingDataLoaderIter

from densekit import distributed
from densekit.config import UserError
from densekit.data.dataset import Batch, ImageDataset, Key
from densekit.data.places import Places

START_METHOD = "fork" if sys.platform == "linux" else "spawn"
IGNORED = (signal.SIGINT, signal.SIGTERM)
PREFETCH = 2  # batches in flight per worker
HELD = 3  # batches held by the previous, the current and the next step
SHARED_MEMORY = Path("/dev/shm")  # where Linux keeps batches passed between processes
PR_SET_PDEATHSIG = 1  # from linux/prctl.h

_running: weakref.WeakSet[_MultiProcessingDataLoaderIter] = weakref.WeakSet()


def read_batches(
    dataset: ImageDataset,
    keys: Iterable[list[Key]],
    largest: int,
    workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Yields one batch for each list in `keys`, in order; no list has more than `largest` keys.

    Raises UnreadableImage for the first file that cannot be read, and UserError if a store fails,
    shared memory is too small or a worker was killed. Draws nothing from torch's global generator.
    """
    size, places = largest * dataset.image_bytes, None
    if workers:
        _check_shared_memory(size, workers)
        if START_METHOD == "fork":
            places = Places(workers, PREFETCH + HELD, size)
    batches = _start(
        DataLoader(
            dataset,
            batch_sampler=keys,
            collate_fn=partial(dataset.collate, places=places),
            num_workers=workers,
            prefetch_factor=PREFETCH if workers else None,
            pin_memory=pin_memory,
            worker_init_fn=start_worker,
            multiprocessing_context=START_METHOD if workers else None,
            generator=torch.Generator(),
        )
    )
    try:
        for collated in batches:
            if isinstance(collated, UserError):
                raise collated
            yield collated.batch()
    except RuntimeError as error:
        if not re.match(r"DataLoader worker \(pid", str(error)):
            raise
        raise UserError(
            f"a loader process was killed ({error}), most likely out of memory: lower "
            f"data.workers={workers}, or set data.workers=0 to read in the main process"
        ) from error
    finally:
        _end(batches)


def start_worker(number: int) -> None:
    """Prepares a worker process; torch has already set it to one thread."""
    gc.freeze()  # a collection would write to, and so copy, all memory shared with the main process
    for ignored in IGNORED:
        signal.signal(ignored, signal.SIG_IGN)
    if sys.platform == "linux":  # elsewhere torch's watchdog ends it seconds after its parent
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _start(loader: DataLoader) -> _BaseDataLoaderIter:
    """Starts the workers, with the signals IGNORED blocked until they ignore them."""
    with signals_blocked():
        return _note(iter(loader))


@contextlib.contextmanager
def signals_blocked() -> Iterator[None]:
    """Blocks the signals IGNORED, also in a process started meanwhile, until it unblocks them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _note(batches: _BaseDataLoaderIter) -> _BaseDataLoaderIter:
    if isinstance(batches, _MultiProcessingDataLoaderIter):
        _running.add(batches)
    return batches


def _end(batches: _BaseDataLoaderIter) -> None:
    if isinstance(batches, _MultiProcessingDataLoaderIter):
        batches._shutdown_workers()


def _end_all() -> None:
    for batches in list(_running):
        _end(batches)


# At exit multiprocessing sends the workers SIGTERM, which they ignore, and waits for them. This
# handler is registered later, so it runs first.
atexit.register(_end_all)


def _check_shared_memory(batch_bytes: int, workers: int) -> None:
    """Raises UserError if /dev/shm is too small, which would kill a worker later (bus error)."""
    if sys.platform != "linux" or not SHARED_MEMORY.is_dir():
        return
    needed = distributed.local_world_size() * (PREFETCH * workers + HELD) * batch_bytes
    free = shutil.disk_usage(SHARED_MEMORY).free
    if free < needed:
        raise UserError(
            f"{SHARED_MEMORY} has {free >> 20} MiB free, but data.workers={workers} may have "
            f"{needed >> 20} MiB of images in flight; lower it, set data.workers=0, or give the "
            f"container more (docker run --shm-size={-(-needed >> 29)}g, or --ipc=host)"
        )
