from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densekit.data.config import DataConfig
from densekit.data.decode import decode
from densekit.data.splits import open_split
from densekit.data.survey import Copies, open_all, survey


@pytest.fixture
def pets(tmp_path: Path, write_folder) -> Path:
    write_folder(tmp_path / "train", {"cat": 70, "dog": 3})
    write_folder(tmp_path / "val", {"cat": 2, "dog": 2}, size=(20, 6))
    return tmp_path


def found(folder: Path, num_classes: int | None = None, **options: object):
    config = DataConfig(train=str(folder), image_size=7, **options)
    return survey(*open_split(config), config, num_classes, threads=3)


def files(groups: tuple[Copies, ...]) -> list[set[str]]:
    return [{"/".join(Path(one.file).parts[-3:]) for one in group.images} for group in groups]


def test_a_good_data_set_has_sizes_and_classes_and_nothing_wrong(pets: Path) -> None:
    # write_folder draws the same first pixels for files of one seed, of two sizes
    seen = found(pets)
    assert (seen.train, seen.val, seen.is_wrong) == (73, 4, False)
    assert [(one.name, one.train, one.val) for one in seen.classes] == [
        ("cat", 70, 2),
        ("dog", 3, 2),
    ]
    assert seen.width is not None
    assert seen.height is not None
    assert (seen.width.smallest, seen.width.median, seen.width.largest) == (10, 10, 20)
    assert (seen.height.smallest, seen.height.median, seen.height.largest) == (6, 8, 8)
    assert seen.enlarged == 4  # those 6 pixels high
    assert seen.file_bytes == sum(p.stat().st_size for p in pets.rglob("*.png"))
    assert any("imbalanced" in note for note in seen.notes)


def test_the_same_pixels_are_found_whatever_file_they_are_in(pets: Path) -> None:
    """In another format, in both splits, and with another label."""
    with Image.open(pets / "train/cat/001.png") as image:
        image.save(pets / "train/cat/again.bmp")
        image.save(pets / "val/cat/leak.tiff")
    with Image.open(pets / "train/dog/001.png") as image:
        image.save(pets / "train/cat/dog.png", compress_level=0)
    with Image.open(pets / "train/dog/002.png") as image:
        image.save(pets / "train/dog/copy.png")
    seen = found(pets)
    assert files(seen.leaked) == [
        {"train/cat/001.png", "train/cat/again.bmp", "val/cat/leak.tiff"},
    ]
    assert files(seen.contradictory) == [{"train/dog/001.png", "train/cat/dog.png"}]
    assert {one.label for one in seen.contradictory[0].images} == {"cat", "dog"}
    assert files(seen.repeated) == [{"train/dog/002.png", "train/dog/copy.png"}]
    assert seen.is_wrong


def test_images_alike_in_all_but_shape_are_not_the_same(pets: Path) -> None:
    pixels = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    Image.fromarray(pixels).save(pets / "train/cat/wide.png")
    Image.fromarray(pixels.reshape(5, 4, 3)).save(pets / "train/cat/high.png")
    assert found(pets).repeated == ()


def test_every_bad_file_is_named_with_what_decoding_says_of_it(pets: Path) -> None:
    whole = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(whole, "JPEG")
    bad = {
        "empty.jpg": b"",
        "text.png": b"no image",
        "cut.jpg": whole.getvalue()[: len(whole.getvalue()) // 2],
    }
    for name, content in bad.items():
        (pets / "train/dog" / name).write_bytes(content)
    seen = found(pets)
    assert {Path(one.image.file).name for one in seen.unreadable} == set(bad)
    for one in seen.unreadable:
        with pytest.raises(Exception, match=r".") as error:
            decode(one.image.file, 3)
        assert str(error.value).replace(f"{one.image.file}: ", "") == one.reason
        assert one.image.label == "dog"
    assert seen.is_wrong


def test_labels_of_a_list_that_are_no_class_are_named_by_line(pets: Path) -> None:
    (pets / "list.txt").write_text("train/cat/000.png 0\ntrain/dog/000.png 7\n")
    config = DataConfig(train=str(pets / "list.txt"), val_fraction=0.2)
    train, val = open_all(config, "multiclass")
    assert (len(train), len(val)) == (2, 0)  # a class of one image: nothing can be held out
    seen = survey(train, val, config, num_classes=2)
    assert [one.image.place for one in seen.mislabelled] == [f"{pets / 'list.txt'}:2"]
    assert seen.is_wrong
    assert [one.train for one in seen.classes] == [1, 0]


def test_of_several_classes_those_alike_have_one_answer(pets: Path) -> None:
    rows = ["path,red,round", "train/cat/000.png,1,0", "train/cat/001.png,1,1"]
    with Image.open(pets / "train/cat/000.png") as image:
        image.save(pets / "same.png")
    (pets / "train.csv").write_text("\n".join([*rows, "same.png,1,1"]))
    (pets / "val.csv").write_text("path,red,round\nval/cat/000.png,0,1\nval/cat/001.png,1,0\n")
    config = DataConfig(train=str(pets / "train.csv"), val=str(pets / "val.csv"))
    seen = survey(*open_all(config, "multilabel"), config)
    assert [(one.name, one.train, one.val) for one in seen.classes] == [
        ("red", 3, 1),
        ("round", 2, 1),
    ]
    assert [one.label for one in seen.contradictory[0].images] == ["red", "red, round"]
