"""The folder that an explanation is written to: new, empty, or an earlier explanation's."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

import densekit
from densekit.config import UserError
from densekit.files import make_folder, write_atomically

MANIFEST = "explain.json"
PAGE_NAME, OVERLAYS = "index.html", "overlays"
REUSE_FIGURE = "feature-reuse.png"
ExplanationKind = Literal["images", "feature-reuse"]
OWN: dict[ExplanationKind, re.Pattern[str]] = {
    "images": re.compile(rf"{PAGE_NAME}|{OVERLAYS}(/\d{{4,}}-[\w.-]+\.png)?"),
    "feature-reuse": re.compile(re.escape(REUSE_FIGURE)),
}
"""What an explanation of each kind consists of, beside explain.json and files being written."""


def claim(folder: Path, kind: ExplanationKind) -> None:
    """Makes `folder`, or clears it of an earlier explanation of this kind.

    Raises UserError where it holds anything else, which is left as it is.
    """
    make_folder(folder)
    there = sorted(path for path in folder.rglob("*"))
    known = re.compile(rf"{OWN[kind].pattern}|{MANIFEST}|(.*/)?\..*\.densekit-\d+\.tmp")
    strange = [path for path in there if not known.fullmatch(path.relative_to(folder).as_posix())]
    if there and (strange or _kind_of(folder) != kind):
        name = (strange or there)[0].relative_to(folder)
        raise UserError(
            f"{folder}: holds {name}, which is not of an earlier explanation of this kind; choose "
            f"a new or empty folder"
        )
    for path in there:
        if not path.is_dir():
            path.unlink()
    write_manifest(folder, kind, {})


def write_manifest(folder: Path, kind: ExplanationKind, content: dict[str, Any]) -> dict[str, Any]:
    """explain.json, which also says that the folder is ours. Returns all that it holds."""
    whole = {"densekit": densekit.__version__, "kind": kind, **content}
    write_atomically(folder / MANIFEST, (json.dumps(whole, indent=1) + "\n").encode())
    return whole


def _kind_of(folder: Path) -> str | None:
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content.get("kind") if isinstance(content, dict) and "densekit" in content else None
