"""Scores parts on this machine: in this process, or in several.

Each way is a generator that yields, now and then, how many more images are done; closing it
discards unfinished parts.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event

from densekit.config import UserError
from densekit.data.workers import IGNORED
from densekit.infer.classifier import Classifier
from densekit.score.parts import LOOK_EVERY, ScoreJob, score_part

AHEAD = 2  # parts queued per process


def in_this_process(job: ScoreJob, parts: Sequence[int]) -> Generator[int, None, None]:
    rows = job.rows(job.classifier(), parts)
    for part in parts:
        with closing(score_part(job, rows, part)) as scoring:
            yield from scoring


def in_processes(job: ScoreJob, parts: Sequence[int], workers: int) -> Generator[int, None, None]:
    """In `workers` processes with a network each. Raises UserError if one is killed.

    They are spawned, not forked: torch's threads, CUDA and obstore do not survive a fork.
    """
    context = multiprocessing.get_context("spawn")
    shared = Shared(job, context.Value("q", 0), context.Value("q", 0), context.Event())
    pool = ProcessPoolExecutor(workers, context, _begin, (shared,))
    pending, running, seen = iter(parts), set[Future[None]](), 0
    try:
        while True:
            running |= {
                pool.submit(_score, part)
                for part in islice(pending, AHEAD * workers - len(running))
            }
            if not running:
                return
            finished, running = wait(running, LOOK_EVERY, FIRST_COMPLETED)
            for part in finished:
                part.result()
            done = shared.done.value
            yield done - seen
            seen = done
    except BrokenProcessPool as error:
        raise UserError(
            f"a process of --workers {workers} was killed, most often because memory ran out; "
            f"take fewer, or a smaller --batch-size"
        ) from error
    finally:
        shared.stop.set()
        pool.shutdown(cancel_futures=True)


# In the processes ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Shared:
    """State shared by the processes."""

    job: ScoreJob
    workers: Synchronized[int]
    """How many have started."""
    done: Synchronized[int]
    """Images done."""
    stop: Event


_shared: Shared  # a process of the pool has one pool
_classifier: Classifier | None = None


def _begin(shared: Shared) -> None:
    """Leaves signals to the main process, and ends when it is gone."""
    global _shared
    _shared = shared
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _score(part: int) -> None:
    """Loads the network with the first part, so that a UserError reaches the main process."""
    global _classifier
    if _classifier is None:
        with _shared.workers.get_lock():
            worker = _shared.workers.value
            _shared.workers.value += 1
        _classifier = _shared.job.classifier(worker)
    rows = _shared.job.rows(_classifier, [part])
    with closing(score_part(_shared.job, rows, part)) as scoring:
        for images in scoring:
            if _shared.stop.is_set():
                return
            with _shared.done.get_lock():
                _shared.done.value += images
