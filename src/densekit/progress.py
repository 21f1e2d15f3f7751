"""What a person sees on the terminal while something runs: progress bars, on stderr, of rank 0."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

from densekit import distributed

T = TypeVar("T")
BAR_AFTER = 2.0  # seconds before a bar appears


def say(text: str) -> None:
    """A line for people, of rank 0 alone."""
    console = Console(stderr=True, quiet=not distributed.is_main(), highlight=False)
    console.print(text, markup=False, soft_wrap=True)


def bar(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Hands `items` on, `total` of them; on a terminal, a bar says how far they are."""
    console = Console(stderr=True)
    if not distributed.is_main() or not console.is_terminal:
        yield from items
        return
    progress, began = Progress(console=console, transient=True), time.monotonic()
    task = progress.add_task(what, total=total)
    try:
        for item in items:
            yield item
            progress.advance(task)
            if time.monotonic() - began > BAR_AFTER:
                progress.start()
    finally:
        progress.stop()


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
