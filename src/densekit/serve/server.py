"""uvicorn, with an end that loses no request, and without clients that never finish their head."""

from __future__ import annotations

import signal
import time
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from densekit.serve.guard import Life
from densekit.serve.limits import Limits

HEAD_SECONDS = 10.0
"""For a request's head, from the connection's start."""
IDLE_SECONDS = 75
"""A connection stays open so long between requests, longer than most balancers use it again."""
MOST_CONNECTIONS = 4096
"""At once; past it 503."""


class Draining(uvicorn.Server):
    """SIGTERM: the process says that it is not ready, goes on for `drain_seconds`, in which each
    answer closes its connection, and then ends what is under way and itself with exit code 0. A
    second signal, and Ctrl-C, skip the wait; a third ends it at once."""

    def __init__(self, config: uvicorn.Config, life: Life, drain_seconds: float) -> None:
        super().__init__(config)
        self._life, self._drain_seconds = life, drain_seconds
        self._stop_at: float | None = None
        self._headless: dict[object, float] = {}

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit
        self.should_exit = self._life.draining or sig == signal.SIGINT
        self._life.draining = True
        self._stop_at = time.monotonic() + self._drain_seconds

    async def on_tick(self, counter: int) -> bool:
        now = time.monotonic()
        if self._stop_at is not None and now >= self._stop_at:
            self.should_exit = True
        if counter % 10 == 0:
            self._drop_headless(now)
        return await super().on_tick(counter)

    def _drop_headless(self, now: float) -> None:
        """Closes connections that began a request HEAD_SECONDS ago and have not sent its head."""
        waiting = {c for c in self.server_state.connections if _is_headless(c)}
        self._headless = {c: self._headless.get(c, now) for c in waiting}
        for connection, since in self._headless.items():
            if now - since > HEAD_SECONDS:
                connection.transport.close()  # type: ignore[attr-defined]


def _is_headless(connection: object) -> bool:
    """Whether no request is under way and none is waited for: uvicorn's own timer is off."""
    cycle = getattr(connection, "cycle", None)
    timer = getattr(connection, "timeout_keep_alive_task", None)
    return timer is None and (cycle is None or cycle.response_complete)


def server(app: ASGIApp, limits: Limits, life: Life, drain_seconds: float) -> Draining:
    """Ready to `run(sockets=[...])`."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,  # it has paths and addresses
        server_header=False,
        proxy_headers=False,
        ws="none",
        lifespan="on",
        backlog=2048,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=round(limits.deadline) + 5,
    )
    return Draining(config, life, drain_seconds)
