"""A prediction's row, and how `densekit predict` writes rows.

A row is `{file, topk: [{class, label, prob}], error}`, the same in JSON, CSV and Python; an answer
of a multilabel or binary network also has `positive` if the class has a threshold. An unreadable
image is a row too, with its error and no answers. File names that are not valid UTF-8 are written
as by `readable`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from typing import Any, TextIO, TypedDict

from densekit.data.listing import readable

EveryAnswer = TypedDict("EveryAnswer", {"class": int, "label": str, "prob": float})


class Answer(EveryAnswer, total=False):
    """A class and its probability."""

    positive: bool
    """Whether the probability reaches the class' threshold."""


class Row(TypedDict):
    """One image's prediction."""

    file: str | None
    """The path as given; None for an image without one."""
    topk: list[Answer]
    """Most probable first."""
    error: str | None


def write_json(rows: Iterable[Row], out: TextIO) -> int:
    """A JSON array with a row on each line, streamed. Returns the number of rows with an error."""
    failed, before = 0, "[\n"
    for row in rows:
        out.write(before + json.dumps({**row, "file": _name(row)}))
        failed, before = failed + (row["error"] is not None), ",\n"
    out.write("\n]\n" if before != "[\n" else "[]\n")
    return failed


def write_csv(rows: Iterable[Row], out: TextIO, topk: int, thresholds: bool = False) -> int:
    """file, class1, label1, prob1, class2, ..., error; with `thresholds`, `positive` after each
    prob. Returns the number of rows with an error."""
    failed, fields = 0, ("class", "label", "prob", *(("positive",) if thresholds else ()))
    names = [f"{field}{place}" for place in range(1, topk + 1) for field in fields]
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["file", *names, "error"])
    for row in rows:
        cells: list[Any] = [answer.get(field, "") for answer in row["topk"] for field in fields]
        cells += [""] * (len(names) - len(cells))
        table.writerow([_name(row), *cells, row["error"]])
        failed += row["error"] is not None
    return failed


def write_text(rows: Iterable[Row], out: TextIO) -> int:
    """A plain-text line each: file and answers. Returns the number of rows with an error."""
    failed = 0
    for row in rows:
        answers = "  ".join(map(_spoken, row["topk"]))
        out.write(f"{_name(row)}  {answers or 'error: ' + str(row['error'])}\n")
        failed += row["error"] is not None
    return failed


def _spoken(answer: Answer) -> str:
    yes = " (positive)" if answer.get("positive") else ""
    return f"{answer['label']} {answer['prob']:.4f}{yes}"


def _name(row: Row) -> str | None:
    return None if row["file"] is None else readable(row["file"])
