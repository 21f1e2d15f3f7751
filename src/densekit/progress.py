"""A progress bar for what may take long: on stderr, on a terminal, after two seconds."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

T = TypeVar("T")
PATIENCE = 2.0  # seconds


def bar(items: Iterable[T], total: int, what: str, quiet: bool = False) -> Iterator[T]:
    """Hands `items` on, `total` of them, and shows how far they are."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield from items
        return
    progress, began = Progress(console=console, transient=True), time.monotonic()
    task = progress.add_task(what, total=total)
    try:
        for item in items:
            yield item
            progress.advance(task)
            if time.monotonic() - began > PATIENCE:
                progress.start()
    finally:
        progress.stop()
