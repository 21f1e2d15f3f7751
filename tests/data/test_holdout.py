"""What is held out of a list: shares, folds and whole groups of every class; the file that says."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from densekit.config import ConfigSource, UserError, build
from densekit.data.config import DataConfig
from densekit.data.groups import group_counts
from densekit.data.holdout import divide, held_before, read_sides, split_text
from densekit.data.listing import Examples
from densekit.data.splits import open_split, open_val


def names(examples: Examples) -> list[str]:
    return [examples.relative(i) for i in range(len(examples))]


def hold_out(examples: Examples, fraction: float) -> tuple[Examples, Examples]:
    return divide(examples, DataConfig(val_fraction=fraction))


def many(labels: list[int], root: str = "/data") -> Examples:
    paths = [f"{root}/{label}/{i}.png" for i, label in enumerate(labels)]
    lines = list(range(1, len(labels) + 1))
    return Examples(paths, np.array(labels, np.int64), {}, root, f"{root}/list.txt", lines)


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 99),
)
def test_held_out_files_depend_on_nothing_but_the_files(
    labels: list[int], fraction: float, seed: int
) -> None:
    examples = many(labels)
    if max(np.bincount(labels)) < 2:
        with pytest.raises(UserError, match="no class with two images"):
            hold_out(examples, fraction)
        return
    train, val = hold_out(examples, fraction)
    assert sorted([*train.paths, *val.paths]) == sorted(examples.paths)
    assert train.paths == [p for p in examples.paths if p in set(train.paths)]  # order kept
    for label, count in enumerate(np.bincount(labels)):
        held = int((val.labels == label).sum())
        if count >= 2:
            assert 1 <= held < count
        assert held == 0 or abs(held - fraction * count) <= 1
    order = list(range(len(labels)))
    random.Random(seed).shuffle(order)
    moved = many(labels, "/elsewhere/data").subset(order)
    assert sorted(names(hold_out(moved, fraction)[1])) == sorted(names(val))


def test_all_lines_of_a_file_go_the_same_way() -> None:
    once = many([0] * 10)
    twice = once.subset([i for i in range(10) for _ in range(3)])
    train, val = hold_out(twice, 0.3)
    assert not set(train.paths) & set(val.paths)
    assert len(val) == 9


def test_val_fraction_holds_out_of_a_folder(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path, {"cat": 10, "dog": 5})
    train, val = open_split(DataConfig(train=str(tmp_path), val_fraction=0.2))
    assert np.bincount(train.labels).tolist() == [8, 4]
    assert np.bincount(val.labels).tolist() == [2, 1]
    assert val.classes == train.classes == {0: "cat", 1: "dog"}


def test_a_class_of_one_image_is_named(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path, {"cat": 10, "dog": 1})
    train, val = open_split(DataConfig(train=str(tmp_path), val_fraction=0.2))
    assert np.bincount(val.labels, minlength=2).tolist() == [2, 0]
    assert train.notes[-1].endswith("validation says nothing about dog")


# Folds --------------------------------------------------------------------------------------


def test_every_image_is_validated_on_in_one_fold(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path, {"cat": 11, "dog": 6})
    folds = [open_split(DataConfig(train=str(tmp_path), fold=f"{k}/5")) for k in range(1, 6)]
    together = [name for _, val in folds for name in names(val)]
    assert sorted(together) == sorted(names(folds[0][0]) + names(folds[0][1]))
    assert {len(val) for _, val in folds} == {3, 4}
    again = open_split(DataConfig(train=str(tmp_path), fold="2/5"))[1]
    assert names(again) == names(folds[1][1])
    other = open_split(DataConfig(train=str(tmp_path), fold="2/5", split_seed=1))[1]
    assert names(other) != names(again)


@pytest.mark.parametrize("fold", ["0/5", "6/5", "1/1", "2", "two/5", "-1/5"])
def test_what_is_no_fold_is_refused(fold: str) -> None:
    with pytest.raises(UserError, match=f"such as 2/5, got {fold}"):
        build(DataConfig, ConfigSource({"fold": fold}))


def test_two_ways_of_holding_out_are_refused(tmp_path: Path, write_folder) -> None:
    with pytest.raises(UserError, match=r"fold=2/5 and val_fraction=0\.1 both hold"):
        build(DataConfig, ConfigSource({"fold": "2/5", "val_fraction": 0.1}))
    write_folder(tmp_path / "train", {"cat": 2, "dog": 2})
    write_folder(tmp_path / "val", {"cat": 1, "dog": 1})
    with pytest.raises(UserError, match=r"also .*val; set data\.fold=null"):
        open_split(DataConfig(root=str(tmp_path), fold="1/2"))


def test_more_folds_than_images(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path, {"cat": 2, "dog": 2})
    with pytest.raises(UserError, match="has 4 images; use fewer folds"):
        open_split(DataConfig(train=str(tmp_path), fold="9/9"))


# Groups -------------------------------------------------------------------------------------


@pytest.fixture
def patients(tmp_path: Path, write_image) -> Path:
    """60 images of 24 patients, in a CSV file and by their names."""
    draw = np.random.default_rng(0)
    rows = [("path", "mass", "edema", "patient")]
    for index in range(60):
        patient = f"p{draw.integers(24):02d}"
        path = f"img/{patient}_{index}.png"
        write_image(tmp_path / path, seed=index)
        rows.append((path, *map(str, draw.integers(0, 2, 2)), patient))
    with (tmp_path / "all.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return tmp_path / "all.csv"


@pytest.mark.parametrize("group", ["patient", "(p[0-9]+)_", "^(?:img)/(p..)"])
def test_a_group_is_on_one_side(patients: Path, group: str) -> None:
    config = DataConfig(train=str(patients), group=group, val_fraction=0.25)
    train, val = open_split(config, "multilabel")
    sides = [{Path(path).name.split("_")[0] for path in part.paths} for part in (train, val)]
    assert not sides[0] & sides[1]
    assert group_counts(train, val) == {"train": len(sides[0]), "val": len(sides[1]), "both": 0}
    assert len(val) == pytest.approx(15, abs=3)
    folds = [DataConfig(train=str(patients), group=group, fold=f"{k}/3") for k in (1, 2, 3)]
    in_folds = [names(open_split(fold, "multilabel")[1]) for fold in folds]
    assert sorted(n for fold in in_folds for n in fold) == sorted(names(train) + names(val))


def test_a_patient_on_both_sides_is_an_error_that_names_some(patients: Path) -> None:
    lines = patients.read_text().splitlines()
    (patients.parent / "val.csv").write_text("\n".join([lines[0], *lines[41:]]))
    patients.write_text("\n".join(lines[:41]))
    config = DataConfig(train=str(patients), val=str(patients.parent / "val.csv"), group="patient")
    with pytest.raises(UserError, match=r"data\.group=patient: \d+ are in both .* \(p\d\d, p\d\d"):
        open_split(config, "multilabel")


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ("patiemt", r'no such column; did you mean "patient"\?'),
        ("(p", "not a regular expression"),
        ("(p)(.)", "expected one group in brackets, got 2"),
        (r"\((p)", "does not match img/"),
    ],
)
def test_groups_that_cannot_be_found(patients: Path, group: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_split(DataConfig(train=str(patients), group=group, val_fraction=0.2), "multilabel")


def test_an_image_without_its_patient_is_named(patients: Path) -> None:
    lines = patients.read_text().splitlines()
    lines[7] = lines[7].rsplit(",", 1)[0] + ","
    patients.write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"all\.csv:8: patient is empty"):
        open_split(DataConfig(train=str(patients), group="patient", fold="1/4"), "multilabel")


def test_one_patient_cannot_be_parted(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path, {"cat": 4, "dog": 4})
    config = DataConfig(train=str(tmp_path), group=r"(.)", val_fraction=0.5)
    assert len(open_split(config)[1]) == 4, "cats or dogs"
    config = DataConfig(train=str(tmp_path), group=r"(\.png)", val_fraction=0.5)
    with pytest.raises(UserError, match=r"the 1 groups .* cannot be split"):
        open_split(config)


# The file -----------------------------------------------------------------------------------


def test_the_file_says_who_is_where(patients: Path, tmp_path: Path) -> None:
    config = DataConfig(train=str(patients), group="patient", val_fraction=0.25)
    train, val = open_split(config, "multilabel")
    file = tmp_path / "split.csv"
    file.write_bytes(split_text(train, val))
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert len(rows) == 60
    assert {(r["split"], r["path"], r["group"]) for r in rows if r["split"] == "val"} == {
        ("val", name, group) for name, group in zip(names(val), val.groups, strict=True)
    }
    known = read_sides(file)
    assert {n for n, side in known.items() if side == "train"} == set(names(train))
    file.write_text("path,split,group\na.png,test,\n")
    with pytest.raises(UserError, match=r"split\.csv:2: expected path,split,group"):
        read_sides(file)


def test_names_of_all_kinds_come_back(tmp_path: Path) -> None:
    odd = ['a,"b".png', "a\nb.png", "\udce9t\udce9.png", "été.png"]
    examples = Examples([f"/x/{n}" for n in odd], np.array([0, 1, 0, 1]), {}, "/x", "/x")
    file = tmp_path / "split.csv"
    file.write_bytes(split_text(examples.subset([0, 1]), examples.subset([2, 3])))
    assert dict(read_sides(file)) == dict(zip(odd, ["train", "train", "val", "val"], strict=True))


def test_new_images_move_nobody(patients: Path, write_image) -> None:
    """Of a run that goes on with more images: known ones and their patients stay, so that none of
    what was trained on is validated on."""
    config = DataConfig(train=str(patients), group="patient", val_fraction=0.25)
    everybody = patients.read_text().splitlines()
    patients.write_text("\n".join(everybody[:41]))
    before = open_split(config, "multilabel")
    known = {n: side for side, part in zip(("train", "val"), before, strict=True)
             for n in names(part)}  # fmt: skip
    patients.write_text("\n".join(everybody))
    train, val = open_split(config, "multilabel", known=known)
    assert set(names(before[0])) <= set(names(train))
    assert set(names(before[1])) <= set(names(val))
    assert len(train) + len(val) == 60
    assert group_counts(train, val)["both"] == 0
    assert any("20 images are new since the run was split" in note for note in train.notes)
    held = open_val(config, "multilabel", known)
    assert names(held) == names(before[1])
    assert "20 images were added after training and are left out" in held.notes[-1]


def test_images_that_are_gone_are_said(patients: Path) -> None:
    config = DataConfig(train=str(patients), group="patient", val_fraction=0.25)
    train, val = open_split(config, "multilabel")
    known = {n: side for side, part in (("train", train), ("val", val)) for n in names(part)}
    fewer = held_before(val.subset(range(1, len(val))), known)
    assert "1 of its validation images are no longer listed" in fewer.notes[-1]
    with pytest.raises(UserError, match="lists none of the images that the run was validated on"):
        held_before(train, known)
