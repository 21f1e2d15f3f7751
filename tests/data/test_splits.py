from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import pytest

from densekit.config import UserError
from densekit.data import builtin
from densekit.data.checks import check_examples
from densekit.data.config import DataConfig
from densekit.data.decode import decode
from densekit.data.listing import Examples
from densekit.data.splits import (
    anchored,
    find_part,
    open_examples,
    open_split,
    open_val,
)


def names(examples: Examples) -> list[str]:
    return [examples.relative(i) for i in range(len(examples))]


@pytest.fixture
def imagenet(tmp_path: Path, write_folder) -> Path:
    """A data set as PaddleClas has it: lists, and folders train/ and val/."""
    write_folder(tmp_path / "train", {"cat": 3, "dog": 2})
    write_folder(tmp_path / "val", {"cat": 1, "dog": 1})
    (tmp_path / "train_list.txt").write_text(
        "".join(f"train/cat/00{i}.png 0\n" for i in range(3)) + "train/dog/000.png 1\n"
    )
    (tmp_path / "val_list.txt").write_text("val/dog/000.png 1\nval/cat/000.png 0\n")
    (tmp_path / "classes.txt").write_text("0 cat\n1 dog\n")
    return tmp_path


# Which files are meant ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "paths",
    [
        {"root": "."},
        {"root": "..", "train": "{here}/train_list.txt", "val": "{here}/val_list.txt"},
        {"train": "train", "val": "val"},
        {"train": ".", "val": None},
    ],
)
def test_anchored_paths_are_found_from_any_folder(
    imagenet: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch,
    paths: dict[str, str | None],
) -> None:  # fmt: skip
    monkeypatch.chdir(imagenet)
    given = {key: path and path.format(here=imagenet.name) for key, path in paths.items()}
    if given.get("root") == "..":  # then the list's paths start from there
        for name in ("train_list.txt", "val_list.txt"):
            text = (imagenet / name).read_text().splitlines()
            lines = "".join(f"{imagenet.name}/{line}\n" for line in text)
            (imagenet / name).write_text(lines)
    config = DataConfig(**given)
    train, val = open_split(config)
    there = anchored(config)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    for found, wanted in zip((*open_split(there), open_val(there)), (train, val, val), strict=True):
        assert [p.resolve() for p in map(Path, found.paths)] == [
            (imagenet / p).resolve() for p in map(Path, wanted.paths)
        ]


def test_a_root_alone_is_a_whole_data_set(imagenet: Path) -> None:
    train, val = open_split(DataConfig(root=str(imagenet)))
    assert (len(train), len(val)) == (4, 2)
    assert train.origin == str(imagenet / "train_list.txt")
    assert train.classes == val.classes == {0: "cat", 1: "dog"}
    assert all(Path(path).is_file() for path in [*train.paths, *val.paths])
    for data in DataConfig(train=str(imagenet)), DataConfig(root="/nowhere", train=str(imagenet)):
        assert [e.paths for e in open_split(data)] == [train.paths, val.paths]


def test_subfolders_serve_where_there_are_no_lists(imagenet: Path) -> None:
    (imagenet / "train_list.txt").unlink()
    (imagenet / "val_list.txt").unlink()
    train, val = open_split(DataConfig(root=str(imagenet)))
    assert (len(train), len(val)) == (5, 2)
    assert names(val) == ["cat/000.png", "dog/000.png"]
    (imagenet / "val").rename(imagenet / "valid")
    assert open_split(DataConfig(root=str(imagenet)))[1].origin == str(imagenet / "valid")


def test_names_are_looked_up_under_the_root_then_here(
    imagenet: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path_factory.mktemp("here")
    monkeypatch.chdir(here)
    (here / "mine.txt").write_text("train/cat/000.png 0\n")
    data = DataConfig(root=str(imagenet), train="mine.txt", val="val_list.txt")
    train, val = open_split(data)
    assert train.paths == [str(imagenet / "train/cat/000.png")]
    assert len(val) == 2
    with pytest.raises(UserError, match=r"no file or folder .*/none\.txt or none\.txt"):
        open_examples("none.txt", root=str(imagenet))


def test_a_list_starts_from_its_own_folder_without_a_root(imagenet: Path) -> None:
    examples = open_examples(str(imagenet / "val_list.txt"))
    assert examples.paths[0] == str(imagenet / "val/dog/000.png")
    assert open_examples(str(imagenet)).paths == examples.paths
    assert len(open_examples(str(imagenet), split="train")) == 4
    assert names(open_examples(str(imagenet / "train"))) == [
        "cat/000.png", "cat/001.png", "cat/002.png", "dog/000.png", "dog/001.png"
    ]  # fmt: skip


def test_a_class_may_be_called_train(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path, {"bus": 1, "train": 1})
    assert find_part(tmp_path, "train") is None
    assert open_examples(str(tmp_path)).classes == {0: "bus", 1: "train"}


def test_a_data_set_with_one_part_is_not_taken_for_class_folders(imagenet: Path) -> None:
    (imagenet / "train_list.txt").unlink()
    (imagenet / "train").rename(imagenet / ".hidden")
    with pytest.raises(UserError, match=r"has val_list\.txt but neither train_list\.txt nor"):
        open_split(DataConfig(root=str(imagenet)))


def test_validation_folders_get_the_training_labels(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path / "train", {"ant": 1, "bee": 1, "cow": 1})
    write_folder(tmp_path / "val", {"bee": 1, "cow": 2})
    _, val = open_split(DataConfig(root=str(tmp_path)))
    assert val.labels.tolist() == [1, 2, 2]


def test_a_label_means_the_same_in_both(imagenet: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "list.txt").write_text("val/cat/000.png 1\nval/dog/000.png 0\n")
    (other / "classes.txt").write_text("0 dog\n1 cat\n")
    data = DataConfig(root=str(imagenet), train="train_list.txt", val=str(other / "list.txt"))
    train, val = open_split(data)
    assert val.labels.tolist() == [0, 1]
    assert val.classes == train.classes == {0: "cat", 1: "dog"}
    assert "they are matched by name: its label 0 is 'dog', which is 1 there" in val.notes[0]
    (other / "classes.txt").write_text("0 Hund\n1 cat\n")
    with pytest.raises(UserError, match=r"'Hund' is not a class of .*: it has Hund, cat; .* dog"):
        open_split(data)


def test_parts_are_found_in_any_case(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path / "Train", {"cat": 2, "dog": 2})
    write_folder(tmp_path / "VALID", {"cat": 1, "dog": 1})
    write_folder(tmp_path / "test", {"cat": 1, "dog": 1})
    train, val = open_split(DataConfig(root=str(tmp_path)))
    assert (len(train), len(val)) == (4, 2)
    assert val.origin == str(tmp_path / "VALID")
    assert val.notes == (f"{tmp_path}: uses Train/ and VALID/, not ['test']",)
    (tmp_path / "Train").rename(tmp_path / "Training")
    (tmp_path / "test").rename(tmp_path / "Testing")
    shutil.rmtree(tmp_path / "VALID")
    train, val = open_split(DataConfig(train=str(tmp_path)))
    assert val.origin == str(tmp_path / "Testing")
    assert "Testing/ is the validation set" in val.notes[0]


def test_two_parts_of_one_name_are_refused(tmp_path: Path, write_folder) -> None:
    for name in "train", "Train", "val":
        write_folder(tmp_path / name, {"cat": 1, "dog": 1})
    if len(list(tmp_path.iterdir())) == 3:  # else a file system to which they are one
        with pytest.raises(UserError, match="holds both Train/ and train/; keep one"):
            open_split(DataConfig(root=str(tmp_path)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "no training images: set data.train"),
        ({"train": "train"}, "no validation images for .*train: set data.val, or .*val_fraction"),
        ({"train": "train", "val": "val", "val_fraction": 0.5}, "also data.val=val; set .*=0"),
        ({"train": ".", "val_fraction": 0.5}, "also .*val_list.txt; set data.val_fraction=0"),
        ({"train": "builtin:mnist"}, 'builtin:mnist: no such builtin.*did you mean "mnist5k"'),
    ],
)
def test_what_is_missing_or_too_much_is_said(
    imagenet: Path, monkeypatch: pytest.MonkeyPatch, data: dict, message: str
) -> None:
    monkeypatch.chdir(imagenet)
    with pytest.raises(UserError, match=message):
        open_split(DataConfig(**data))


def test_the_builtin_has_both_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def write(root: Path) -> Path:
        written.append(root)
        root.mkdir(parents=True, exist_ok=True)
        (root / "train_list.txt").write_text("a.png 0\nb.png 1\n")
        (root / "val_list.txt").write_text("c.png 1\n")
        return root

    monkeypatch.setitem(builtin.WRITERS, "mnist5k", write)
    monkeypatch.chdir(tmp_path)
    train, val = open_split(DataConfig(train="builtin:mnist5k"))
    assert (len(train), len(val)) == (2, 1)
    assert len(open_examples("builtin:mnist5k")) == 1
    assert open_split(DataConfig(train="builtin:mnist5k", root="x"))[0].paths[0] == "x/a.png"
    assert written == [Path("data/mnist5k")] * 2 + [Path("x")]


# The real ones ------------------------------------------------------------------------------


def test_500_imagenet_files_decode(
    test_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("imagenet")
    with tarfile.open(test_data / "imagenet-sample.tar") as tar:
        tar.extractall(root, filter="data")
    examples = open_examples(str(root / "imagenet-sample"))
    assert len(examples) == 500
    assert examples.num_classes == 1000
    assert examples.classes[examples.labels[1]] == "n01484850 great white shark"
    counts, warnings = check_examples(examples, 1000, 16, 3)
    assert counts.sum() == 500
    assert warnings[0].startswith("500 of 1000 classes have no images: n01443537 goldfish, ")
    for path in examples.paths:
        image = decode(path, 3)
        assert image.shape[0] == 3
        assert min(image.shape[1:]) >= 30
