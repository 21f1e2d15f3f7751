"""What a person sees on the terminal while something runs: progress bars, on stderr, of rank 0."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

from densekit import distributed

T = TypeVar("T")
BAR_AFTER = 2.0  # seconds before a bar appears
LINE_EVERY = 60.0  # seconds between lines in a file
LIVE: list[Progress] = []  # long-lived bars on the terminal, which a further bar joins


def say(text: str) -> None:
    """A line for people, of rank 0 alone."""
    console = Console(stderr=True, quiet=not distributed.is_main(), highlight=False)
    console.print(text, markup=False, soft_wrap=True)


def bar(items: Iterable[T], total: int, what: str, lines: bool = False) -> Iterator[T]:
    """Hands `items` on, `total` of them; on a terminal, a bar says how far they are.

    With `lines`, for what takes hours, a file gets a line of it every minute.
    """
    console = Console(stderr=True)
    if not distributed.is_main() or not console.is_terminal:
        yield from _told(items, total, what) if lines else items
        return
    progress = LIVE[-1] if LIVE else Progress(console=console, transient=True)
    began = time.monotonic()
    task = progress.add_task(what, total=total, visible=not LIVE, text="")
    try:
        for item in items:
            yield item
            progress.advance(task)
            if time.monotonic() - began > BAR_AFTER:
                progress.update(task, visible=True)
                progress.start()
    finally:
        progress.remove_task(task)
        if progress not in LIVE:
            progress.stop()


def _told(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """`scoring: 4,096 of 1,000,000, 51.2 a second, 5:24:17 left`, every minute."""
    began = told = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - told >= LINE_EVERY:
            told, rate = now, done / (now - began)
            left = timedelta(seconds=round((total - done) / rate))
            say(f"{what}: {done:,} of {total:,}, {rate:.1f} a second, {left} left")


@contextlib.contextmanager
def waiting(what: str, line: bool = False) -> Iterator[None]:
    """While it lasts, a terminal shows what is waited for; with `line`, a file or notebook gets a
    line of it.
    """
    console = Console(stderr=True, quiet=not distributed.is_main(), highlight=False)
    if not console.is_terminal:
        if line:
            console.print(f"{what} ...", markup=False, soft_wrap=True)
        yield
        return
    with console.status(what):
        yield
