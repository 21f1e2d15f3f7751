"""data.relabel, and a validation list that is opened without the training images."""

from __future__ import annotations

from pathlib import Path

import pytest

from densekit.config import UserError
from densekit.data.config import DataConfig
from densekit.data.splits import open_split, open_val


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "train_list.txt").write_text("a.jpg 7\nb.jpg 3\nc.jpg 40\nd.jpg 3\n")
    (tmp_path / "val_list.txt").write_text("e.jpg 40\nf.jpg 7\n")
    (tmp_path / "classes.txt").write_text("3 cat\n7 dog\n40 owl\n41 elk\n")
    return tmp_path


def test_labels_are_numbered_by_the_training_lists_order(root: Path) -> None:
    train, val = open_split(DataConfig(root=str(root), relabel=True))
    assert train.labels.tolist() == [1, 0, 2, 0]
    assert val.labels.tolist() == [2, 1]  # theirs numbers each list by itself: 1, 0
    assert train.classes == val.classes == {0: "cat", 1: "dog", 2: "owl"}
    assert train.num_classes == 3
    plain, _ = open_split(DataConfig(root=str(root)))
    assert plain.labels.tolist() == [7, 3, 40, 3]


def test_a_label_that_training_lacks_is_named_with_its_line(root: Path) -> None:
    (root / "val_list.txt").write_text("e.jpg 40\nf.jpg 8\n")
    with pytest.raises(UserError, match=r"val_list\.txt:2: .*no image with label 8"):
        open_split(DataConfig(root=str(root), relabel=True))


def test_a_validation_list_needs_no_training_images(root: Path) -> None:
    config = DataConfig(root=str(root), train="train_list.txt", val="val_list.txt")
    both = open_split(config)[1]
    (root / "train_list.txt").unlink()
    assert open_val(config).digest() == both.digest()
    with pytest.raises(UserError, match="train_list"):
        open_val(config.model_copy(update={"relabel": True}))


def test_without_a_list_of_its_own_it_is_open_splits(root: Path) -> None:
    config = DataConfig(root=str(root), train="train_list.txt", val_fraction=0.5)
    assert open_val(config).digest() == open_split(config)[1].digest()
