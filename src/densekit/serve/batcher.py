"""Dynamic batching: what queued while the network was busy is its next batch.

One thread runs the network. It takes images of all requests in the order in which they were
decoded. An image whose request has ended (deadline, client gone) is left out.
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
    """What a request wants to know of each image."""

    topk: int = 5
    cams: tuple[int, ...] | None = None
    """Classes whose maps it wants; None: none."""
    answer_cams: bool = False
    """Whether it wants the maps of its answers' classes."""

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
    """What the network says of one image."""

    answers: list[Answer]
    """Empty where its output is not finite."""
    maps: list[ClassMap] = field(default_factory=list)


@dataclass(frozen=True)
class Answered:
    """With what it took."""

    finding: Finding | Exception
    batch: int
    """Images in its batch."""
    queue_seconds: float
    compute_seconds: float


@dataclass
class Job:
    """One image on its way."""

    square: Tensor
    ask: Ask
    done: asyncio.Future[Answered]
    queued: float = field(default_factory=time.perf_counter)


Compute = Callable[[Sequence[Job]], list[Finding]]
"""What the network says of each, in order; may raise whatever a network raises."""


class Batcher:
    """A queue and the network's thread."""

    def __init__(
        self,
        compute: Compute,
        max_batch: int,
        max_wait: float,
        loop: asyncio.AbstractEventLoop,
        on_batch: Callable[[int, float], None],
    ) -> None:
        """`on_batch(images, seconds)` is called in `loop`'s thread after each batch; `max_wait` is
        in seconds."""
        self._compute, self._max_batch, self._max_wait = compute, max_batch, max_wait
        self._loop, self._on_batch = loop, on_batch
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="densekit-network", daemon=True)
        self._thread.start()

    def submit(self, square: Tensor, ask: Ask) -> asyncio.Future[Answered]:
        """uint8 [C, crop, crop] -> its answer to come; cancelling it takes it out of the queue."""
        job = Job(square, ask, self._loop.create_future())
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()
        return job.done

    @property
    def waiting(self) -> int:
        return len(self._jobs)

    def close(self) -> None:
        """Answers what is queued, then ends the thread."""
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
        """The next batch; empty when it is over."""
        with self._changed:
            while not (batch := self._next()):
                if self._closed and not self._jobs:
                    return []
                self._changed.wait(self._patience())
            return batch

    def _next(self) -> list[Job]:
        """Up to `max_batch` images that are still wanted; none while a batch may yet fill."""
        self._jobs = deque(job for job in self._jobs if not job.done.done())
        if self._patience() and len(self._jobs) < self._max_batch and not self._closed:
            return []
        return [self._jobs.popleft() for _ in range(min(self._max_batch, len(self._jobs)))]

    def _patience(self) -> float | None:
        """Seconds for which the oldest image may still wait for others; None without images."""
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
    """What is found for each; where a batch fails, each image alone, so that one cannot take
    others with it (and a GPU short of memory gets smaller batches)."""
    try:
        return compute(batch)
    except Exception as error:
        if len(batch) == 1:
            return [error]
    return [_each(compute, [job])[0] for job in batch]
