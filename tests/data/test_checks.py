from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densekit.config import UserError
from densekit.data.checks import check_examples, check_split
from densekit.data.config import DataConfig
from densekit.data.listing import Examples
from densekit.data.splits import open_examples, open_split


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


def many(labels: list[int], root: str = "/data") -> Examples:
    paths = [f"{root}/{label}/{i}.png" for i, label in enumerate(labels)]
    lines = list(range(1, len(labels) + 1))
    return Examples(paths, np.array(labels, np.int64), {}, root, f"{root}/list.txt", lines)


def test_counts_and_empty_classes(imagenet: Path) -> None:
    train, _ = open_split(DataConfig(root=str(imagenet)))
    counts, warnings = check_examples(train, 4, 64, 3)
    assert counts.tolist() == [3, 1, 0, 0]
    assert warnings == ["2 of 4 classes have no images: 2, 3"]
    assert check_examples(train, 2, 64, 3)[1] == []


def test_a_label_that_is_no_class_is_named(imagenet: Path) -> None:
    (imagenet / "train_list.txt").write_text("train/cat/000.png 0\ntrain/dog/000.png 7\n")
    train = open_examples(str(imagenet), split="train")
    with pytest.raises(UserError, match=r"train_list.txt:2: label 7, but .*=2 .*num_classes=8"):
        check_examples(train, 2, 0, 3)


def test_files_that_cannot_be_read_are_named_with_their_lines(imagenet: Path) -> None:
    (imagenet / "train/cat/001.png").write_bytes(b"")
    (imagenet / "train/cat/002.png").write_bytes(b"no image")
    (imagenet / "train/dog/000.png").unlink()
    train = open_examples(str(imagenet), split="train")
    with pytest.raises(UserError) as error:
        check_examples(train, 2, 64, 3)
    text = str(error.value)
    assert text.startswith("3 of 4 files looked at cannot be read:")
    assert f"train_list.txt:2: {imagenet}/train/cat/001.png: is empty" in text
    assert f"train_list.txt:3: {imagenet}/train/cat/002.png: is not an image" in text
    assert f"train_list.txt:4: {imagenet}/train/dog/000.png: there is no such file" in text
    assert f"paths are relative to {imagenet}: set data.root" in text
    assert check_examples(train, 2, 0, 3)[0].tolist() == [3, 1]  # none looked at
    assert check_examples(train, 2, 1, 3)[0].tolist() == [3, 1]  # the first is sound


def test_at_most_five_are_listed() -> None:
    with pytest.raises(UserError) as error:
        check_examples(many([0] * 40), 1, 20, 3)
    assert str(error.value).startswith("20 of 20 files")
    assert str(error.value).count("there is no such file") == 5
    assert "39.png" not in str(error.value)


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 200), sample=st.integers(1, 80))
def test_the_sample_is_spread_over_all(n: int, sample: int) -> None:
    with pytest.raises(UserError, match=f"^{min(n, sample)} of {min(n, sample)} files"):
        check_examples(many([0] * n), 1, sample, 3)


# One file under two names -------------------------------------------------------------------


def test_a_file_with_two_labels_is_refused(imagenet: Path) -> None:
    (imagenet / "train_list.txt").write_text("train/cat/000.png 0\n./train/cat/000.png 1\n")
    train = open_examples(str(imagenet), split="train")
    with pytest.raises(UserError) as error:
        check_examples(train, 2, 0, 3)
    assert f"train_list.txt:2: {imagenet}/./train/cat/000.png has label dog" in str(error.value)
    assert "train_list.txt:1 label cat" in str(error.value)


def test_lines_that_stand_twice_are_counted(imagenet: Path) -> None:
    text = (imagenet / "train_list.txt").read_text()
    (imagenet / "train_list.txt").write_text(text + text)
    train = open_examples(str(imagenet), split="train")
    assert "4 of 8 images are listed more than once" in check_examples(train, 2, 0, 3)[1][0]


@pytest.mark.parametrize("how", ["./val/cat/000.png", "train/../val/cat/000.png", "link/000.png"])
def test_one_file_on_both_sides_is_refused(imagenet: Path, how: str) -> None:
    (imagenet / "link").symlink_to("val/cat")
    (imagenet / "train_list.txt").write_text(f"{how} 0\ntrain/dog/000.png 1\n")
    train, val = open_split(DataConfig(root=str(imagenet)))
    with pytest.raises(UserError, match=r"1 files are in both .*val_list.txt:2: .*val/cat/000"):
        check_split(train, val, 2, DataConfig(check_files=0))


def test_a_link_to_a_file_is_that_file(imagenet: Path) -> None:
    (imagenet / "train/cat/000.png").unlink()
    (imagenet / "train/cat/000.png").symlink_to(imagenet / "val/cat/000.png")
    train, val = open_split(DataConfig(root=str(imagenet)))
    with pytest.raises(UserError, match="1 files are in both"):
        check_split(train, val, 2, DataConfig(check_files=0))


def test_imbalanced_classes_are_reported() -> None:
    """Whose best epoch may be the one that always answers the same."""
    told = check_examples(many([0] * 90 + [1] * 10), 2, 0, 3)[1]
    assert told == [
        "the classes are imbalanced, from 90 images of 0 to 10 of 1: always predicting 0 gives a "
        "top-1 of 0.90; look at balanced_accuracy, by which loop.monitor=auto "
        "chooses the best epoch"
    ]
    for labels in [0] * 60 + [1] * 40, [0] * 9 + [1], list(range(100)):
        assert not any("imbalanced" in text for text in check_examples(many(labels), 100, 0, 3)[1])
