"""Several serving processes on one listening socket, restarted when they die."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import tempfile
import time
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import FrameType

from prometheus_client.multiprocess import mark_process_dead

from densekit.progress import say
from densekit.serve.measures import SHARED
from densekit.serve.run import Serving, serve_as_worker

SPAWN = multiprocessing.get_context("spawn")
SHORT_LIFE = 10.0  # seconds; a worker that ends sooner counts as a failed start
MOST_SHORT_LIVES = 3  # failed starts in a row before giving up


class Workers:
    """Starts the processes, replaces those that die, and forwards signals.

    They share one listening socket: a connection that one worker does not accept waits for another.
    """

    def __init__(self, serving: Serving, listener: socket.socket, count: int) -> None:
        self._serving, self._listener, self._count = serving, listener, count
        self._alive: dict[BaseProcess, float] = {}
        self._signalled = 0
        self._short_lives = 0

    def run(self) -> int:
        """Runs until a signal ends them; returns the exit code: 0, or 3 if workers keep dying."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._forward)
        with tempfile.TemporaryDirectory(prefix="densekit-metrics-") as folder:
            os.environ[SHARED] = folder
            while len(self._alive) < self._count:
                self._start()
            while self._alive:
                for sentinel in wait([process.sentinel for process in self._alive]):
                    self._ended(next(p for p in self._alive if p.sentinel == sentinel), folder)
        return 3 if self._short_lives >= MOST_SHORT_LIVES else 0

    def _start(self) -> None:
        process = SPAWN.Process(target=serve_as_worker, args=(self._serving, self._listener))
        process.start()
        self._alive[process] = time.monotonic()
        if self._signalled:  # the signal came while it started
            process.terminate()

    def _ended(self, process: BaseProcess, folder: str) -> None:
        process.join()
        assert process.pid is not None
        mark_process_dead(process.pid, folder)
        lived = time.monotonic() - self._alive.pop(process)
        if self._signalled:
            return
        self._short_lives = self._short_lives + 1 if lived < SHORT_LIFE else 0
        if self._short_lives >= MOST_SHORT_LIVES:
            say(f"{MOST_SHORT_LIVES} workers in a row ended as they started; giving up")
            self._forward(signal.SIGTERM, None)
            return
        say(f"a worker ended (exit code {process.exitcode}); another takes its place")
        self._start()

    def _forward(self, _: int, __: FrameType | None) -> None:
        self._signalled += 1
        self._listener.close()  # the workers have their own copies
        for process in list(self._alive):
            process.terminate()
