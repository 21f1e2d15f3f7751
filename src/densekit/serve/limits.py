"""The server's limits, and the load that counts against them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from densekit.config import UserError

BODIES_HELD = 16
"""Bodies of maximal size that may be in memory at once; more if they are smaller."""


class Refused(Exception):  # noqa: N818 (what is raised is what is wrong)
    """An error response: a status and a sentence."""

    def __init__(self, status: int, sentence: str, retry_after: int | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.retry_after = status, sentence, retry_after


@dataclass(frozen=True)
class Limits:
    """Each is an option of `densekit serve`."""

    max_batch: int = 32
    """Images per batch."""
    max_wait_ms: float = 0.0
    """Milliseconds that an idle network waits for a batch to fill."""
    max_queue: int = 256
    """Images of all requests under way; past it 503."""
    max_images: int = 32
    """Images per request."""
    max_bytes: int = 32 * 2**20
    """Per request body."""
    max_pixels: int = 64_000_000
    """Per image, checked before decoding."""
    deadline: float = 30.0
    """Seconds for an answer, from the body's last byte; past it 504."""
    body_seconds: float = 60.0
    """Seconds for a body to arrive; past it 408."""

    def check(self) -> None:
        """Raises UserError for limits under which some requests could never be answered."""
        if self.max_images > self.max_queue:
            raise UserError(
                f"--max-images {self.max_images}: such a request would never fit into --max-queue "
                f"{self.max_queue}; lower the one or raise the other"
            )


class Load:
    """Images and bytes of the requests under way in this process. Use from one event loop only."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.images = self.bytes = 0
        self.seconds_per_image = 0.0
        """The network's recent rate; 0 before the first batch."""

    @contextmanager
    def request(self) -> Iterator[RequestShare]:
        """One request's share, released at the end even on an error."""
        share = RequestShare(self)
        try:
            yield share
        finally:
            self.images -= share.images
            self.bytes -= share.bytes

    def retry_after(self) -> int:
        """Whole seconds until the images under way should be done."""
        return max(1, round(self.images * self.seconds_per_image + 0.5))

    def measured(self, images: int, seconds: float) -> None:
        """Records a batch's size and time."""
        now = seconds / images
        before = self.seconds_per_image or now
        self.seconds_per_image = 0.8 * before + 0.2 * now


class RequestShare:
    """One request's share of the load."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self.images = self.bytes = 0

    def check_room(self) -> None:
        """Raises Refused if there is no room for one more image."""
        self._take_images(1)
        self._take_images(-1)

    def add_images(self, count: int) -> None:
        """Raises Refused past max_images and max_queue."""
        limits = self._load.limits
        if count > limits.max_images:
            raise Refused(
                413, f"{count} images in one request; this server takes {limits.max_images}"
            )
        self._take_images(count)

    def _take_images(self, count: int) -> None:
        load = self._load
        if load.images + count > load.limits.max_queue:
            raise Refused(
                503,
                f"busy: {load.images} images are under way, of at most {load.limits.max_queue}",
                load.retry_after(),
            )
        load.images += count
        self.images += count

    def add_bytes(self, count: int) -> None:
        """Raises Refused past max_bytes, or if all bodies together are too large."""
        load, largest = self._load, self._load.limits.max_bytes
        if self.bytes + count > largest:
            raise Refused(413, too_large(largest))
        if load.bytes + count > BODIES_HELD * largest:
            raise Refused(503, "busy: too many large bodies are under way", load.retry_after())
        load.bytes += count
        self.bytes += count


def too_large(limit: int) -> str:
    """The error for a body past the limit."""
    return f"the body is larger than this server takes, {limit:,} bytes"
