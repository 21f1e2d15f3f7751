"""The type of an option that names a file or folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

LONGEST, LONGEST_NAME = 4096, 255  # bytes, Linux' PATH_MAX and NAME_MAX


def expand_home(text: str) -> str:
    """`text` with a leading ~ as the home folder. Raises ValueError for what no path can be."""
    if "\0" in text:
        raise ValueError(f"a path cannot hold a NUL character, got {text!r}")
    content = os.fsencode(text)
    if len(content) > LONGEST or ("://" not in text and _longest_name(content) > LONGEST_NAME):
        raise ValueError(f"a path too long for any disk, {len(content)} bytes: {text[:40]!r}...")
    if not text.startswith("~"):
        return text
    try:
        return str(Path(text).expanduser())
    except RuntimeError as error:
        raise ValueError(f"there is no home folder for {text!r}; a name is ./{text}") from error


def _longest_name(path: bytes) -> int:
    return max(map(len, path.split(b"/")))


PathText = Annotated[str, AfterValidator(expand_home)]
"""A path as text, so that names such as `builtin:mnist5k` and URLs may stand in its place."""
