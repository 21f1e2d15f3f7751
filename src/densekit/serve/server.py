"""uvicorn with a graceful shutdown, and a timeout for clients that never finish their headers."""

from __future__ import annotations

import signal
import time
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from densekit.serve.guard import Life
from densekit.serve.limits import Limits

HEAD_SECONDS = 10.0
"""For a request's headers to arrive."""
IDLE_SECONDS = 75
"""How long an idle connection stays open: longer than most load balancers reuse one."""
MOST_CONNECTIONS = 4096
"""Concurrent connections; past it 503."""


class Draining(uvicorn.Server):
    """On SIGTERM the process reports not ready, keeps serving for `drain_seconds`, in which each
    response closes its connection, then finishes the requests under way and exits with 0. A second
    signal, or Ctrl-C, skips the wait; a third ends it at once."""

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
        """Closes connections that have not sent their request's headers after HEAD_SECONDS."""
        waiting = {c for c in self.server_state.connections if _is_headless(c)}
        self._headless = {c: self._headless.get(c, now) for c in waiting}
        for connection, since in self._headless.items():
            if now - since > HEAD_SECONDS:
                connection.transport.close()  # type: ignore[attr-defined]


def _is_headless(connection: object) -> bool:
    """Whether no request is under way and uvicorn's own keep-alive timer is off."""
    cycle = getattr(connection, "cycle", None)
    timer = getattr(connection, "timeout_keep_alive_task", None)
    return timer is None and (cycle is None or cycle.response_complete)


def server(app: ASGIApp, limits: Limits, life: Life, drain_seconds: float) -> Draining:
    """A server, to be started with `run(sockets=[...])`."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,  # it would log paths and addresses
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
