"""Labels of several classes: lists, CSV files as CheXpert and NIH have them, two classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from densekit.config import UserError
from densekit.data.checks import check_examples
from densekit.data.classes import Numbering
from densekit.data.config import DataConfig
from densekit.data.holdout import divide
from densekit.data.listing import Examples
from densekit.data.multilabel import Labelling, as_binary, match_multilabel, widen
from densekit.data.splits import open_split
from densekit.training.recipe import load_recipe

CHEXPERT = """Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Cardiomegaly,Edema
train/patient00001/study1/view1_frontal.jpg,Female,68,Frontal,AP,1.0,,
train/patient00002/study2/view1_frontal.jpg,Female,87,Frontal,AP,,-1.0,1.0
train/patient00003/study1/view1_frontal.jpg,Male,41,Lateral,,0.0,1.0,-1.0
"""
NIH = """Image Index,Finding Labels,Follow-up #,Patient ID,OriginalImage[Width,Height],
00000001_000.png,Cardiomegaly,0,1,2682,2749,
00000001_001.png,Cardiomegaly|Emphysema,1,1,2894,2729,
00000002_000.png,No Finding,0,2,2500,2048,
"""


def read(tmp_path: Path, text: str, name: str = "a.csv", task: str = "multilabel", **how):
    file = tmp_path / name
    file.write_text(text)
    return Labelling(task, **how).read_file(file, tmp_path)


def several(labels: list[list[int]], names: dict[int, str] | None = None, unlisted: int = 0):
    rows = np.array(labels, np.int8)
    lines = list(range(1, len(rows) + 1))
    return Examples([f"{i}.png" for i in lines], rows, names or {}, "", "list.txt", lines,
                    unlisted=unlisted)  # fmt: skip


def network(*names: str) -> Numbering:
    return Numbering.of_network(names, named=True)


# Files --------------------------------------------------------------------------------------


def test_a_list(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("0 mass\n3 edema\n")
    found = read(tmp_path, "a b.png 0,2\nc.png -\n\nd.png\t1\n", "list.txt")
    assert found.labels.tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]]
    assert found.labels.dtype == np.int8
    assert [found.relative(i) for i in range(3)] == ["a b.png", "c.png", "d.png"]
    assert found.where(2).endswith("list.txt:4")
    chosen = read(tmp_path, "a.png 0,3\nc.png -\n", "list.txt", classes=("edema", "mass"))
    assert chosen.labels.tolist() == [[1, 1], [0, 0]]
    assert chosen.classes == {0: "edema", 1: "mass"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a.png", "expected a path and its labels"),
        ("a.png 0,x", "expected a path and its labels"),
        ("a.png 0,1,0,0,1", "is repeated"),
        ("a.png -1", "expected a path and its labels"),
        ("a.png 0, 2", "separate labels by commas without blanks"),
    ],
)
def test_lines_that_are_none(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(UserError, match=rf"list.txt:2: .*{said}"):
        read(tmp_path, f"b.png 0\n{line}\n", "list.txt")


def test_chexperts_csv(tmp_path: Path) -> None:
    found = read(tmp_path, CHEXPERT)
    assert found.classes == {0: "No Finding", 1: "Cardiomegaly", 2: "Edema"}
    assert found.labels.tolist() == [[1, -1, -1], [-1, -1, 1], [0, 1, -1]]
    assert found.relative(1) == "train/patient00002/study2/view1_frontal.jpg"
    assert found.columns["Sex"].tolist() == ["Female", "Female", "Male"]
    assert "other columns: Sex, Age, Frontal/Lateral, AP/PA" in found.notes[0]
    chosen = read(tmp_path, CHEXPERT, classes=("Edema",))
    assert chosen.labels.tolist() == [[-1], [1], [-1]]


def test_nihs_csv(tmp_path: Path) -> None:
    found = read(tmp_path, NIH)
    assert found.classes == {0: "Cardiomegaly", 1: "Emphysema"}
    assert found.labels.tolist() == [[1, 0], [1, 1], [0, 0]]
    assert found.columns["Patient ID"].tolist() == ["1", "1", "2"]
    assert found.subset([2]).columns["Patient ID"].tolist() == ["2"]
    one = read(tmp_path, NIH, task="binary", classes=("Emphysema",))
    assert one.labels.tolist() == [[0], [1], [0]]


@pytest.mark.parametrize("typo", ["2", "0.5", "None"])
def test_a_typo_does_not_drop_a_finding(tmp_path: Path, typo: str) -> None:
    rows = [f"{n}.png,{n % 2},0,{n % 3}" for n in range(20)]
    rows[7] = f"7.png,{typo},0,1"
    text = "\n".join(["path,edema,mass,view", *rows]) + "\n"
    with pytest.raises(UserError, match=rf"a.csv:9: edema is '{typo}', but .* in 19 of 20 lines"):
        read(tmp_path, text)
    found = read(tmp_path, text, classes=("mass",))
    assert found.classes == {0: "mass"}
    views = read(tmp_path, text.replace(f"7.png,{typo}", "7.png,1"))
    assert views.classes == {0: "edema", 1: "mass"}, "a third of views is 2: no typos"
    assert "other columns: view; data.classes=[...] chooses others" in views.notes[0]


@pytest.mark.parametrize(
    ("text", "how", "said"),
    [
        ("path,a\n1.png,0\n2.png,yes\n", {"classes": ("a",)}, "a.csv:3: a is 'yes'"),
        ("path,a\n1.png,0\n2.png\n", {}, "a.csv:3: has 1 cells"),
        ("path,a\n1.png,x\n", {}, "no column holds only 1"),
        ("path,a\n", {}, "no images"),
        ("", {}, "is empty"),
        ("path,a,a\n1.png,0,0\n", {}, "distinct column names"),
        ("path,edema\n1.png,0\n", {"classes": ("oedema",)}, 'did you mean "edema"'),
        ("path,a,b\n1.png,0,1\n", {"task": "binary"}, "data.classes="),
        ("image,labels\n1.png,\n", {}, "labels is empty"),
    ],
)
def test_tables_that_are_none(tmp_path: Path, text: str, how: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read(tmp_path, text, **how)


def test_folders_are_for_one_class_an_image(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model.task=multilabel needs a list"):
        Labelling("multilabel").read_folders(tmp_path)


# Two classes --------------------------------------------------------------------------------


def test_binary_of_two_classes() -> None:
    labels = np.array([0, 1, 1], np.int64)
    examples = Examples(["a", "b", "c"], labels, {0: "ill", 1: "well"}, "", "pets")
    found = as_binary(examples, None)
    assert (found.labels.tolist(), found.classes) == ([[0], [1], [1]], {0: "well"})
    assert "set data.classes=[ill]" in found.notes[0]
    other = as_binary(examples, ("ill",))
    assert (other.labels.tolist(), other.classes) == ([[1], [0], [0]], {0: "ill"})
    with pytest.raises(UserError, match="no class 'sick'"):
        as_binary(examples, ("sick",))
    three = Examples(["a"], np.array([2]), {}, "", "pets")
    with pytest.raises(UserError, match="there are 3"):
        as_binary(three, None)


# A network's classes ------------------------------------------------------------------------


def test_classes_are_matched_by_name() -> None:
    found = match_multilabel(
        several([[1, 0], [0, 1]], {0: "a", 1: "x"}, unlisted=-1), network("b", "a")
    )
    assert found.labels.tolist() == [[-1, 1], [-1, 0]]
    assert "left out, not classes of the network: x" in found.notes[0]
    assert "does not name b: taken as unknown" in found.notes[1]
    found = match_multilabel(several([[1]], {0: "a"}), network("b", "a"))
    assert found.labels.tolist() == [[0, 1]]
    with pytest.raises(UserError, match="none of its classes is a class of the network"):
        match_multilabel(several([[1]], {0: "z"}), network("b", "a"))


def test_without_names_by_number() -> None:
    found = match_multilabel(several([[0, 1]]), network("a", "b", "c"))
    assert (found.labels.tolist(), found.classes[1]) == ([[0, 1, 0]], "b")
    with pytest.raises(UserError, match="has 2 classes, the network 1"):
        match_multilabel(several([[0, 1]]), network("a"))
    assert widen(several([[1]]), 3).labels.tolist() == [[1, 0, 0]]


# Splits and checks --------------------------------------------------------------------------


def test_train_and_val_have_the_same_classes(tmp_path: Path) -> None:
    (tmp_path / "train_list.txt").write_text("a.png 0\nb.png 1\n")
    (tmp_path / "val_list.txt").write_text("c.png 3\n")
    train, val = open_split(DataConfig(root=str(tmp_path)), "multilabel")
    assert (train.num_classes, val.num_classes) == (4, 4)
    (tmp_path / "v.csv").write_text("path,mass,edema\nc.png,0,1\n")
    (tmp_path / "t.csv").write_text("path,edema,mass\na.png,0,1\n")
    config = DataConfig(root=str(tmp_path), train="t.csv", val="v.csv")
    train, val = open_split(config, "multilabel")
    assert (train.classes, val.labels.tolist()) == ({0: "edema", 1: "mass"}, [[1, 0]])


def test_a_share_of_every_class_is_held_out() -> None:
    rows = [[1, 0]] * 40 + [[1, 1]] * 10 + [[0, 0]] * 50
    rest, share = divide(several(rows), DataConfig(val_fraction=0.2))
    assert (len(rest), len(share)) == (80, 20)
    assert share.labels.sum(0).tolist() == [10, 2]


def test_checks_count_what_is_there(tmp_path: Path) -> None:
    examples = several([[1, 0, -1], [1, 0, 0], [-1, 0, -1]], {2: "edema"})
    counts, told = check_examples(examples, 3, 0, 3)
    assert counts.tolist() == [2, 0, 0]
    assert "2 of 3 classes are present in no image: 1, edema" in told
    assert "1 of 3 classes are absent in no image: 0" in told
    assert any("33.3% of the labels are unknown" in text for text in told)
    with pytest.raises(UserError, match=r"has 3 classes, but model.num_classes=2"):
        check_examples(examples, 2, 0, 3)


def test_a_class_is_asked_for_once() -> None:
    with pytest.raises(UserError, match="classes names 'a' twice"):
        load_recipe(None, ["model.task=multilabel", "data.classes=[a, b, a]"])
