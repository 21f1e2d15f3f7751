"""All lines that cannot be read are said at once, up to a bound."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from densekit.config import UserError
from densekit.data.config import Task
from densekit.data.malformed import LINES_SHOWN, MOST_LINES, MalformedLines
from densekit.data.multilabel import Labelling

CASES: list[tuple[Task, str, str, str]] = [
    ("multiclass", "list.txt", "a.png 0\n", "b.png zero\n"),
    ("multilabel", "list.txt", "a.png 0,1\n", "b.png 0;1\n"),
    ("multilabel", "list.txt", "a.png 0,1\n", "b.png 1,1\n"),
    ("multilabel", "cells.csv", "path,edema\na.png,1\n", "b.png\n"),
    ("multilabel", "names.csv", "path,Finding Labels\na.png,edema\n", "b.png,\n"),
]


@pytest.mark.parametrize(("task", "name", "good", "bad"), CASES)
def test_all_are_said(tmp_path: Path, task: Task, name: str, good: str, bad: str) -> None:
    file = tmp_path / name
    file.write_text(good + bad + good.splitlines()[-1] + "\n" + bad)
    first = good.count("\n") + 1
    with pytest.raises(MalformedLines) as found:
        Labelling(task).read_file(file, tmp_path)
    assert [said.split(": ")[0] for said in found.value.said] == [
        f"{file}:{first}",
        f"{file}:{first + 2}",
    ]
    assert all(said in str(found.value) for said in found.value.said)
    assert str(pickle.loads(pickle.dumps(found.value))) == str(found.value)


def test_a_column_with_other_values(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("path,edema\na.png,1\nb.png,2\nc.png,x\n")
    with pytest.raises(MalformedLines) as found:
        Labelling("multilabel", classes=("edema",)).read_file(file, tmp_path)
    assert [said.split("; ")[0] for said in found.value.said] == [
        f"{file}:3: edema is '2'",
        f"{file}:4: edema is 'x'",
    ]


@pytest.mark.parametrize(
    ("lines", "end"), [(LINES_SHOWN, ""), (LINES_SHOWN + 7, "and 7 more"), (9000, "")]
)
def test_no_more_than_one_reads(tmp_path: Path, lines: int, end: str) -> None:
    file = tmp_path / "list.txt"
    file.write_text("only-a-name.png\n" * lines)
    with pytest.raises(UserError) as found:
        Labelling().read_file(file, tmp_path)
    said = str(found.value)
    assert said.count("expected a path") == min(lines, LINES_SHOWN)
    assert said.endswith(end or (said[-9:] if lines <= MOST_LINES else "where reading stopped"))
