"""The output folder of an explanation or report: new, empty, or of an earlier one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

import densekit
from densekit.config import UserError
from densekit.files import make_folder, write_atomically

MANIFEST, REPORT = "explain.json", "report.json"
PAGE_NAME, OVERLAYS = "index.html", "overlays"
REUSE_FIGURE = "feature-reuse.png"
FIGURES = ("confusion", "roc", "precision-recall", "calibration", "balance", "curves")
"""Of a report: NAME.png."""
PREDICTIONS = "predictions.npz"
ExplanationKind = Literal["images", "feature-reuse", "report"]
OWN: dict[ExplanationKind, re.Pattern[str]] = {
    "images": re.compile(rf"{PAGE_NAME}|{OVERLAYS}(/\d{{4,}}-[\w.-]+\.png)?"),
    "feature-reuse": re.compile(re.escape(REUSE_FIGURE)),
    "report": re.compile(rf"{PAGE_NAME}|{re.escape(PREDICTIONS)}|({'|'.join(FIGURES)})\.png"),
}
"""The files of each kind of folder, beside its manifest and temporary files."""
LEFT_OVER = re.compile(r"\..*\.densekit-\d+\.tmp")
"""The name of what a killed process was writing (files.temporary), its first file perhaps."""


def claim(folder: Path, kind: ExplanationKind) -> None:
    """Creates `folder`, or clears it of an earlier output of this kind.

    Raises UserError if it holds anything else, which is not touched.
    """
    make_folder(folder)
    there = sorted(path for path in folder.rglob("*"))
    kept = [path for path in there if not LEFT_OVER.fullmatch(path.name)]
    known = re.compile(f"{OWN[kind].pattern}|{_manifest(folder, kind).name}")
    strange = [path for path in kept if not known.fullmatch(path.relative_to(folder).as_posix())]
    if kept and (strange or _kind_of(_manifest(folder, kind)) != kind):
        name = (strange or kept)[0].relative_to(folder)
        raise UserError(
            f"{folder}: holds {name}, which is not of an earlier "
            f"{'report' if kind == 'report' else 'explanation of this kind'}; choose a new or "
            f"empty folder"
        )
    for path in there:
        if not path.is_dir():
            path.unlink()
    write_manifest(folder, kind, {})


def write_manifest(folder: Path, kind: ExplanationKind, content: dict[str, Any]) -> dict[str, Any]:
    """Writes explain.json or report.json, which also marks the folder as densekit's. Returns its
    content."""
    whole = {"densekit": densekit.__version__, "kind": kind, **content}
    write_atomically(_manifest(folder, kind), (json.dumps(whole, indent=1) + "\n").encode())
    return whole


def _manifest(folder: Path, kind: ExplanationKind) -> Path:
    return folder / (REPORT if kind == "report" else MANIFEST)


def _kind_of(manifest: Path) -> str | None:
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content.get("kind") if isinstance(content, dict) and "densekit" in content else None
