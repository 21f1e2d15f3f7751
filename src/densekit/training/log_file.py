"""log.jsonl: strict JSON, a line at a time as it happens; cut back where a run resumes."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from densekit.files import write_atomically

Line = dict[str, Any]


class LogFile:
    """The lines that are at `path`; opened for writing by the first that is appended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: TextIO | None = None

    def append(self, line: Line) -> None:
        """Writes one line and hands it to the kernel."""
        if self._file is None:
            self._file = self.path.open("a", encoding="utf-8")
        self._file.write(_strict(line) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Lines so far are on the disk: call before the state that covers them is published."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def lines(self) -> Iterator[Line]:
        """Without those that are no JSON, as a crash may leave them."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for text in file:
                with suppress(json.JSONDecodeError, UnicodeDecodeError):
                    line = json.loads(text)
                    if isinstance(line, dict) and "kind" in line:
                        yield line

    def cut(self, lines: int) -> None:
        """Keeps the first `lines`, as they are: what a resumed run does again, it logs again."""
        self.close()  # the file that is open now is not the one that stays
        kept: list[bytes] = []
        if self.path.exists():
            with self.path.open("rb") as file:
                kept = [text.rstrip(b"\n") + b"\n" for text in islice(file, lines)]
        write_atomically(self.path, b"".join(kept))


def _strict(line: Line) -> str:
    """A line of JSON, which has no NaN and no Infinity: they are null."""
    finite = {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()
    }
    return json.dumps(finite, allow_nan=False)
