"""Writes the tables of docs/weights.md: what `make parity` measured, and the published weights."""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from densekit.models.artifact import commit
from densekit.weights.published import PUBLISHED

if TYPE_CHECKING:
    from run import Row, Trained

DOCS = Path(__file__).parents[1] / "docs" / "weights.md"


def write_docs(
    rows: list[Row], trained: list[Trained], versions: dict[str, str], bound: float
) -> None:
    text = DOCS.read_text(encoding="utf-8")
    text = _between(text, "parity", _parity(rows, versions, bound))
    text = _between(text, "training", _training(trained))
    text = _between(text, "published", published())
    DOCS.write_text(text, encoding="utf-8")


def _between(text: str, name: str, content: str) -> str:
    """`text` with `content` between the two comments of that name."""
    begin, end = f"<!-- {name}: written by make parity -->", f"<!-- end of {name} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    assert pattern.search(text), f"{DOCS} has no place for {name}"
    return pattern.sub(lambda _: f"{begin}\n{content}\n{end}", text)


def _parity(rows: list[Row], versions: dict[str, str], bound: float) -> str:
    lines = [
        f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}, "
        f"densekit {commit()}; the bound is {bound:.0e}.",
        "",
        "| Library | Model | File | Way | Difference |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        verdict = "" if row.difference <= bound else " **over**"
        lines.append(
            f"| {row.library} {versions[row.library]} | {row.model} | {row.file} | "
            f"{row.direction} | {row.difference:.1e}{verdict} |"
        )
    return "\n".join(lines)


def _training(trained: list[Trained]) -> str:
    lines = ["| Model | What | Difference | Bound |", "|---|---|---|---|"]
    for row in trained:
        verdict = "" if row.difference <= row.bound else " **over**"
        lines.append(
            f"| {row.model} | {row.what} | {row.difference:.1e}{verdict} | {row.bound:.0e} |"
        )
    return "\n".join(lines)


def published() -> str:
    """The published weights, with a blank where their publisher says nothing."""
    lines = [
        "| `pretrained` | Model | Classes | Top-1 | Top-5 | Preprocessing | Checksum | URL |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in PUBLISHED:
        top1, top5 = ("" if top is None else f"{top:.2f}" for top in (row.top1, row.top5))
        lines.append(
            f"| {row.source} | {row.model} | {row.num_classes} | {top1} | {top5} | "
            f"{row.preprocessing or ''} | {row.checksum or ''} | {row.url} |"
        )
    return "\n".join(lines)
