"""Answers images: decodes them in threads, runs the network in batches."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from densekit import distributed
from densekit.config import UserError
from densekit.data.decode import TooManyPixels, UnreadableImage
from densekit.explain.cam import class_maps, compact, densenet_of
from densekit.infer.classifier import Classifier
from densekit.infer.rows import Answer, Row
from densekit.serve.batcher import Answered, Ask, Batcher, ClassMap, Finding, Job
from densekit.serve.limits import Limits, Load, Refused
from densekit.serve.measures import Measures

LOG = logging.getLogger("densekit.serve")
FAILED = "the network failed on this image; the server's log says how"
NOT_FINITE = "the network's output is not finite"


@dataclass(frozen=True)
class Times:
    """An image's times in seconds; compute is that of its whole batch."""

    decode: float = 0.0
    queue: float = 0.0
    compute: float = 0.0
    batch: int = 0
    """Number of images in its batch."""


@dataclass(frozen=True)
class Result:
    """A request's result for one image."""

    row: Row
    maps: list[ClassMap] = field(default_factory=list)
    times: Times = Times()
    failed: bool = False
    """Whether the server failed, not the image."""


class Service:
    """A classifier that answers many requests concurrently. Use from one event loop only."""

    def __init__(self, classifier: Classifier, limits: Limits, measures: Measures) -> None:
        """Call `open` in the event loop before `answer`."""
        self.classifier, self.limits, self.measures = classifier, limits, measures
        self.load = Load(limits)
        self._readers = ThreadPoolExecutor(max(2, distributed.cores()), "densekit-decode")
        self._batcher: Batcher | None = None
        self.no_maps = _why_no_maps(classifier)
        """Why the network has no class activation maps; None if it has them."""

    def warm_up(self) -> None:
        """Runs the slow first passes: a single image, and the largest batch."""
        seen = self.classifier.preprocess
        grey = np.zeros((seen.crop, seen.crop), np.uint8)
        square = self.classifier.read_square(grey)
        assert isinstance(square, Tensor)
        for images in (1, self.limits.max_batch):
            squares = square.expand(images, *square.shape).contiguous()
            self.classifier.answers(squares, 1)
        if self.no_maps is None:
            class_maps(self.classifier, squares[:1], [0])

    async def open(self) -> None:
        """Starts the network's thread."""
        self._batcher = Batcher(
            self._compute,
            self.limits.max_batch,
            self.limits.max_wait_ms / 1000,
            asyncio.get_running_loop(),
            self._count_batch,
        )

    async def close(self) -> None:
        """Ends all threads after the last answer."""
        assert self._batcher is not None
        await asyncio.to_thread(self._batcher.close)
        self._readers.shutdown(cancel_futures=True)

    def check(self, ask: Ask) -> None:
        """Raises Refused if this network cannot answer it."""
        if not ask.wants_maps:
            return
        if self.no_maps:
            raise Refused(400, self.no_maps)
        count = len(self.classifier.classes)
        wrong = [label for label in ask.cams or () if label >= count]
        if wrong:
            raise Refused(400, f"cam: class {wrong[0]}: this network has 0 to {count - 1}")

    async def answer(
        self, images: Sequence[tuple[str | None, bytes | np.ndarray]], ask: Ask
    ) -> list[Result]:
        """A result for each image (a file's bytes or a uint8 array), in order.

        Cancelling it removes its images from the queue.
        """
        tasks = [asyncio.ensure_future(self._one(*image, ask)) for image in images]
        self.measures.under_way.inc(len(images))
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            self.measures.under_way.dec(len(images))
            for task in tasks:
                task.cancel()

    async def _one(self, file: str | None, image: bytes | np.ndarray, ask: Ask) -> Result:
        loop, batcher = asyncio.get_running_loop(), self._batcher
        assert batcher is not None
        square, decode = await loop.run_in_executor(self._readers, self._read, image)
        self.measures.decode_seconds.observe(decode)
        if isinstance(square, Exception):
            return self._refuse(file, square, Times(decode))
        answered = await batcher.submit(square, ask)
        self.measures.queue_seconds.observe(answered.queue_seconds)
        times = Times(decode, answered.queue_seconds, answered.compute_seconds, answered.batch)
        return self._result(file, answered, times)

    def _result(self, file: str | None, answered: Answered, times: Times) -> Result:
        finding = answered.finding
        if isinstance(finding, Exception):
            log_error("the network failed on an image", finding)
            self.measures.images.labels("failed").inc()
            return Result({"file": file, "topk": [], "error": FAILED}, times=times, failed=True)
        error = None if finding.answers else NOT_FINITE
        self.measures.images.labels("failed" if error else "answered").inc()
        row: Row = {"file": file, "topk": finding.answers, "error": error}
        return Result(row, finding.maps, times, failed=error is not None)

    def _refuse(self, file: str | None, error: Exception, times: Times) -> Result:
        if isinstance(error, TooManyPixels):
            reason = f"has more than {self.limits.max_pixels:,} pixels, which is all it may have"
        else:
            reason = error.reason if isinstance(error, UnreadableImage) else str(error)
        self.measures.images.labels("unreadable").inc()
        return Result({"file": file, "topk": [], "error": reason}, times=times)

    # In other threads -----------------------------------------------------------------------

    def _read(self, image: bytes | np.ndarray) -> tuple[Tensor | UserError, float]:
        """The network's input, or the error; and the seconds it took."""
        began = time.perf_counter()
        square: Tensor | UserError
        try:
            square = self.classifier.read_square(image)
        except UserError as error:  # an array that is not an image
            square = error
        return square, time.perf_counter() - began

    def _compute(self, jobs: Sequence[Job]) -> list[Finding]:
        squares = torch.stack([job.square for job in jobs])
        answers = self.classifier.answers(squares, max(job.ask.topk for job in jobs))
        own = [found[: job.ask.topk] for job, found in zip(jobs, answers, strict=True)]
        maps = self._maps(squares, [_asked(*pair) for pair in zip(jobs, own, strict=True)])
        return [Finding(*pair) for pair in zip(own, maps, strict=True)]

    def _maps(self, squares: Tensor, wanted: Sequence[Sequence[int]]) -> list[list[ClassMap]]:
        """Each image's maps of the requested classes; a second pass over just those images."""
        places = [i for i, labels in enumerate(wanted) if labels]
        found: list[list[ClassMap]] = [[] for _ in wanted]
        if not places:
            return found
        longest = max(len(labels) for labels in wanted)
        padded = [[*wanted[i], *[0] * (longest - len(wanted[i]))] for i in places]
        maps = class_maps(self.classifier, squares[places], torch.tensor(padded))
        for i, own in zip(places, maps, strict=True):
            pairs = zip(wanted[i], own, strict=False)  # without the padding
            found[i] = [ClassMap(label, compact(values)) for label, values in pairs]
        return found

    def _count_batch(self, images: int, seconds: float) -> None:
        self.load.measured(images, seconds)
        self.measures.batch_images.observe(images)
        self.measures.compute_seconds.observe(seconds)


def _asked(job: Job, answers: Sequence[Answer]) -> Sequence[int]:
    """The classes whose maps a job requests; none for an image without answers."""
    if not answers:
        return ()
    return [answer["class"] for answer in answers] if job.ask.answer_cams else job.ask.cams or ()


def _why_no_maps(classifier: Classifier) -> str | None:
    try:
        densenet_of(classifier)
    except UserError as error:
        return f"cam: {error}"
    return None


def log_error(what: str, error: BaseException) -> None:
    """Logs where it was raised, without its message, which may quote a client's data."""
    place = "".join(traceback.format_tb(error.__traceback__))
    LOG.error("%s: %s\n%s", what, type(error).__name__, place)
