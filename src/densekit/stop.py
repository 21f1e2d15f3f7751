"""SIGTERM and SIGINT ask for a clean stop; a second SIGINT ends the process at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

SHOW_CURSOR = b"\x1b[?25h"  # which a progress bar hides


class StopRequest:
    """While entered, the two signals only set `.asked`; on leaving, the old handlers return.

    Outside the main thread, where Python takes no handlers, they stay the caller's own.
    """

    def __init__(self) -> None:
        self.asked = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if number == signal.SIGINT:
            # the next one is the kernel's: Python's handlers wait while a collective does
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            if sys.stderr.isatty():
                os.write(2, SHOW_CURSOR)
