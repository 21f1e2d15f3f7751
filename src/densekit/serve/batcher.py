"""Dynamic batching: the images that queued while the network was busy are its next batch.

One thread runs the network. It takes the images of all requests in the order in which they were
decoded, and skips those whose request has ended (deadline, client gone).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from densekit.explain.cam import CompactMap
from densekit.infer.rows import Answer


@dataclass(frozen=True)
class Ask:
    """What a request asks for each image."""

    topk: int = 5
    cams: tuple[int, ...] | None = None
    """Classes to return maps of; None: no maps."""
    answer_cams: bool = False
    """Whether to return maps of the answers' classes."""

    @property
    def wants_maps(self) -> bool:
        return self.answer_cams or self.cams is not None


@dataclass(frozen=True)
class ClassMap:
    """A class and its activation map."""

    label: int
    values: CompactMap


@dataclass(frozen=True)
class Finding:
    """The network's output for one image."""

    answers: list[Answer]
    """Empty if the logits are not finite."""
    maps: list[ClassMap] = field(default_factory=list)


@dataclass(frozen=True)
class Answered:
    """A finding with its timing."""

    finding: Finding | Exception
    batch: int
    """Number of images in its batch."""
    queue_seconds: float
    compute_seconds: float


@dataclass
class Job:
    """One queued image."""

    square: Tensor
    ask: Ask
    done: asyncio.Future[Answered]
    queued: float = field(default_factory=time.perf_counter)


Compute = Callable[[Sequence[Job]], list[Finding]]
"""Computes each job's finding, in order; may raise whatever the network raises."""


class Batcher:
    """The queue and the network's thread."""

    def __init__(
        self,
        compute: Compute,
        max_batch: int,
        max_wait: float,
        loop: asyncio.AbstractEventLoop,
        on_batch: Callable[[int, float], None],
    ) -> None:
        """`on_batch(images, seconds)` is called in `loop`'s thread after each batch; `max_wait` in
        seconds."""
        self._compute, self._max_batch, self._max_wait = compute, max_batch, max_wait
        self._loop, self._on_batch = loop, on_batch
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="densekit-network", daemon=True)
        self._thread.start()

    def submit(self, square: Tensor, ask: Ask) -> asyncio.Future[Answered]:
        """uint8 [C, crop, crop] -> a future; cancelling it removes the image from the queue."""
        job = Job(square, ask, self._loop.create_future())
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()
        return job.done

    @property
    def waiting(self) -> int:
        return len(self._jobs)

    def close(self) -> None:
        """Answers the queued images, then ends the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    # In the network's thread ----------------------------------------------------------------

    def _run(self) -> None:
        while batch := self._take():
            began = time.perf_counter()
            found = _each(self._compute, batch)
            took = time.perf_counter() - began
            answers = [
                Answered(one, len(batch), began - job.queued, took)
                for job, one in zip(batch, found, strict=True)
            ]
            self._loop.call_soon_threadsafe(self._deliver, batch, answers)

    def _take(self) -> list[Job]:
        """The next batch; empty once closed."""
        with self._changed:
            while not (batch := self._next()):
                if self._closed and not self._jobs:
                    return []
                self._changed.wait(self._patience())
            return batch

    def _next(self) -> list[Job]:
        """Up to `max_batch` images whose requests are alive; none while waiting for a batch to
        fill."""
        self._jobs = deque(job for job in self._jobs if not job.done.done())
        if self._patience() and len(self._jobs) < self._max_batch and not self._closed:
            return []
        return [self._jobs.popleft() for _ in range(min(self._max_batch, len(self._jobs)))]

    def _patience(self) -> float | None:
        """Seconds that the oldest image may still wait for others; None without images."""
        if not self._jobs:
            return None
        return max(0.0, self._jobs[0].queued + self._max_wait - time.perf_counter())

    # In the loop's thread -------------------------------------------------------------------

    def _deliver(self, batch: Sequence[Job], answers: Sequence[Answered]) -> None:
        self._on_batch(len(batch), answers[0].compute_seconds)
        for job, answer in zip(batch, answers, strict=True):
            if not job.done.done():
                job.done.set_result(answer)


def _each(compute: Compute, batch: Sequence[Job]) -> Sequence[Finding | Exception]:
    """Each job's finding. If a batch fails, its images run one by one, so that one cannot fail the
    others (and a GPU short of memory gets smaller batches)."""
    try:
        return compute(batch)
    except Exception as error:
        if len(batch) == 1:
            return [error]
    return [_each(compute, [job])[0] for job in batch]
