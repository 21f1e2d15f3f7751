"""class_column.py: CSV files that say one class of each image, for multiclass and binary."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from densekit.config import ConfigSource, UserError, build
from densekit.data.config import DataConfig, Task
from densekit.data.listing import Examples
from densekit.data.multilabel import Labelling
from densekit.data.splits import open_split


def read(
    folder: Path, text: str, task: Task = "multiclass", name: str = "a.csv", **how: tuple[str, ...]
) -> Examples:
    (folder / name).write_text(text)
    return Labelling(task, **how).read_file(folder / name, folder)


@pytest.mark.parametrize("between", [",", ";", "\t"])
def test_names_are_numbered_in_their_order(tmp_path: Path, between: str) -> None:
    rows = ("file", "dx", "Patient"), ("x/1.png", "nv", "p1"), ("", "", ""), ("2.png", "mel", "p2")
    found = read(tmp_path, "\n".join(between.join(row) if row[0] else "" for row in rows))
    assert found.labels.tolist() == [1, 0]
    assert found.labels.dtype == np.int64
    assert found.classes == {0: "mel", 1: "nv"}
    assert [found.relative(i) for i in range(2)] == ["x/1.png", "2.png"]
    assert found.columns["Patient"].tolist() == ["p1", "p2"]
    assert found.where(1).endswith("a.csv:4")
    assert "images in 'file', the class in 'dx'; other columns: Patient" in found.notes[0]


@pytest.mark.parametrize("cells", [("3", "0"), ("3.0", "0.0")])
def test_numbers_are_the_labels(tmp_path: Path, cells: tuple[str, str]) -> None:
    text = f"path,age,label\n1.png,70,{cells[0]}\n2.png,8,{cells[1]}\n"
    assert (read(tmp_path, text).labels.tolist(), read(tmp_path, text).classes) == ([3, 0], {})
    (tmp_path / "classes.txt").write_text("0 cat\n3 dog\n")
    assert read(tmp_path, text).classes == {0: "cat", 3: "dog"}


def test_a_classes_file_numbers_the_names(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("0 nv\n1 mel\n")
    assert read(tmp_path, "path,label\n1.png,mel\n2.png,nv\n").labels.tolist() == [1, 0]
    with pytest.raises(UserError, match=r"a\.csv:3: label is 'bcc', which the classes.txt beside"):
        read(tmp_path, "path,label\n1.png,mel\n2.png,bcc\n")


def test_a_list_without_heads_is_one(tmp_path: Path) -> None:
    assert read(tmp_path, "1.png,4\n2.png,0\n").labels.tolist() == [4, 0]
    assert read(tmp_path, "path,species\n1.png,cat\n").classes == {0: "cat"}  # the only other one


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("path,label\n1.png,a\n2.png,\n", r"a\.csv:3: label is empty; every image needs its class"),
        ("path,label\n1.png,a\n2.png,a|b\n", r"a\.csv:3: .*several classes.*model.task=multilabel"),
        ("1.png,cat\n2.png,dog\n", r"a\.csv:1: expected a header line .* got the first image"),
        ("path,p,edema\n1.png,1,0\n", "there are p, edema; .* needs model.task=multilabel"),
        ("path,label\n1.png\n", r"a\.csv:2: has 1 cells"),
        ("path,label\n", "no images"),
    ],
)
def test_what_is_no_such_file(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read(tmp_path, text)


# Yes or no ----------------------------------------------------------------------------------

TUMOURS = "path,dx,age\n1.png,benign,3\n2.png,malignant,4\n3.png,benign,5\n"


def test_binary_takes_the_second_name_or_the_one_that_is_asked_for(tmp_path: Path) -> None:
    found = read(tmp_path, TUMOURS, "binary")
    assert (found.labels.tolist(), found.classes) == ([[0], [1], [0]], {0: "malignant"})
    found = read(tmp_path, TUMOURS, "binary", classes=("benign",))
    assert (found.labels.tolist(), found.classes) == ([[1], [0], [1]], {0: "benign"})


def test_binary_takes_one_against_all_others(tmp_path: Path) -> None:
    text = TUMOURS + "4.png,scar,6\n"
    found = read(tmp_path, text, "binary", classes=("malignant",))
    assert (found.labels.tolist(), found.classes) == ([[0], [1], [0], [0]], {0: "malignant"})
    assert "the negative 'benign', 'scar'" in found.notes[-1]
    with pytest.raises(UserError, match=r"there are 3; name the positive class"):
        read(tmp_path, text, "binary")


def test_binary_numbers_may_be_unknown(tmp_path: Path) -> None:
    text = "path,label,male\n1.png,1,0\n2.png,0,1\n3.png,,1\n"
    found = read(tmp_path, text, "binary")
    assert (found.labels.tolist(), found.classes) == ([[1], [0], [-1]], {0: "label"})
    assert read(tmp_path, text, "binary", classes=("male",)).labels.tolist() == [[0], [1], [1]]


# Sides --------------------------------------------------------------------------------------


def test_sides_are_matched_by_name_and_parted_by_patient(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("path,label\n1.png,a\n2.png,b\n3.png,c\n")
    (tmp_path / "val.csv").write_text("path,label\n4.png,c\n5.png,b\n")
    train, val = open_split(
        DataConfig(root=str(tmp_path), train="train.csv", val="val.csv"), "multiclass"
    )
    assert (train.labels.tolist(), val.labels.tolist()) == ([0, 1, 2], [2, 1])
    rows = [f"{i}.png,{'ab'[i // 2 % 2]},p{i // 4}\n" for i in range(40)]
    (tmp_path / "all.csv").write_text("path,label,patient\n" + "".join(rows))
    own = {"root": str(tmp_path), "train": "all.csv", "fold": "1/5", "group": "patient"}
    train, val = open_split(build(DataConfig, ConfigSource(own)))
    assert val.groups is not None
    assert train.groups is not None
    assert (len(set(val.groups)), len(set(train.groups))) == (2, 8)
    assert np.bincount(val.labels).tolist() == [4, 4]
