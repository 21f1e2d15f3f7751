"""densekit data pack: files byte for byte, resumes after a kill, refuses what is another's."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densekit.config import UserError
from densekit.data.config import DataConfig
from densekit.data.shards.cache import ShardCache
from densekit.data.shards.examples import open_shards
from densekit.data.shards.spec import parse_shards
from densekit.data.splits import open_examples, open_split
from runs import begin_densekit, densekit


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name[0] != "."}


def test_shards_hold_the_files_and_all_that_a_folder_says(
    write_folder, pack_into, tmp_path: Path
) -> None:
    images = write_folder(tmp_path / "images", {"cat": 7, "dog.v2": 6}, ".JPG")
    packed = pack_into(images, tmp_path / "shards")
    assert [(p.split, p.images, p.shards, p.written) for p in packed] == [("train", 13, 4, 4)]
    files = open_examples(str(images))
    shards = open_examples(str(tmp_path / "shards"), split="train")
    for index in range(len(files)):
        assert shards.image(index).content == Path(files.paths[index]).read_bytes()
        assert shards.relative(index) == files.relative(index)
    assert shards.digest() == files.digest(), "a run on files goes on with their shards"
    assert (shards.classes, shards.lines) == (files.classes, files.lines)
    some = [3, 11, 4]
    assert [shards.subset(some).image(i) for i in range(3)] == [shards.image(i) for i in some]
    assert len({shards.where(i) for i in range(7)}) > 1, "one class lies in several shards"


def test_a_whole_data_set(write_folder, pack_into, tmp_path: Path) -> None:
    for part, counts in (("train", {"a": 5, "b": 6}), ("val", {"a": 3, "b": 3})):
        write_folder(tmp_path / "images" / part, counts)
    pack_into(tmp_path / "images", tmp_path / "shards")
    files, shards = (
        open_split(DataConfig(root=str(tmp_path / name))) for name in ("images", "shards")
    )
    for of_files, of_shards in zip(files, shards, strict=True):
        assert of_files.digest() == of_shards.digest()
    val = shards[1]
    assert [val.where(i)[-10:] for i in range(6)] == ["000000.tar"] * 4 + ["000001.tar"] * 2


def test_lists_of_one_class_and_of_several(write_image, pack_into, tmp_path: Path) -> None:
    for name in "abc":
        write_image(tmp_path / name / "1.png")
    cache = ShardCache(tmp_path / "cache", 1)
    (tmp_path / "classes.txt").write_text("0 first\n1 second\n2 third\n")
    for task, labels in (("multiclass", "021"), ("multilabel", ("0,2", "-", "1"))):
        list_file = tmp_path / f"{task}.txt"
        lines = [f"{n}/1.png {label}\n" for n, label in zip("abc", labels, strict=True)]
        list_file.write_text("".join(lines))
        pack_into(list_file, tmp_path / task, "val", task=task)
        shards = open_shards(parse_shards(str(tmp_path / task / "val-index.npz")), cache)
        assert shards.classes == {0: "first", 1: "second", 2: "third"}
        assert [shards.relative(i) for i in range(3)] == ["a/1.png", "b/1.png", "c/1.png"]
        plain = tmp_path / f"plain-{task}"
        plain.mkdir()
        for shard in (tmp_path / task).glob("*.tar"):
            (plain / shard.name).write_bytes(shard.read_bytes())
        without = open_shards(parse_shards(str(plain / "val-{000000..000000}.tar")), cache)
        assert np.array_equal(without.labels, shards.labels), "an index can be done without"
        assert [without.image(i).content for i in range(3)] == [
            shards.image(i).content for i in range(3)
        ]
    with pytest.raises(UserError, match=r"has several per image, but model\.task=multiclass"):
        open_examples(str(tmp_path / "multilabel" / "val-index.npz"))


def test_images_are_shrunk(write_image, pack_into, tmp_path: Path) -> None:
    write_image(tmp_path / "images/a/large.png", (60, 90))
    write_image(tmp_path / "images/a/small.png", (60, 20))
    write_image(tmp_path / "images/b/grey.png", (41, 40), "L")
    turned = Image.new("RGB", (80, 40))
    turned.getexif()[0x0112] = 6
    turned.save(tmp_path / "images/b/turned.jpg", exif=turned.getexif())
    pack_into(tmp_path / "images", tmp_path / "shards", resize=20, quality=95)
    shards = open_examples(str(tmp_path / "shards"), split="train")
    seen = {shards.relative(i): Image.open(io.BytesIO(shards.image(i).content)) for i in range(4)}
    assert {name: (image.format, image.mode, image.size) for name, image in seen.items()} == {
        "a/large.png": ("JPEG", "RGB", (20, 30)),
        "a/small.png": ("PNG", "RGB", (60, 20)),
        "b/grey.png": ("JPEG", "L", (20, 20)),
        "b/turned.jpg": ("JPEG", "RGB", (20, 40)),
    }
    Image.fromarray(np.zeros((90, 90), np.uint16)).save(tmp_path / "images/a/deep.png")
    with pytest.raises(UserError, match=r"deep\.png: has more than JPEG's 8 bits"):
        pack_into(tmp_path / "images", tmp_path / "others", resize=20)


def test_what_is_there_already(write_folder, pack_into, tmp_path: Path) -> None:
    images = write_folder(tmp_path / "images", {"a": 6, "b": 6})
    shards = tmp_path / "shards"
    pack_into(images, shards)
    before = contents(shards)
    assert pack_into(images, shards)[0].written == 0
    (shards / "train-000001.tar").unlink()
    assert pack_into(images, shards)[0].written == 1
    assert contents(shards) == before
    with pytest.raises(UserError, match="shard_images was 4 and is now 5"):
        pack_into(images, shards, shard_images=5)
    damaged = bytearray(before["train-000002.tar"])
    damaged[600] ^= 1
    (shards / "train-000002.tar").write_bytes(damaged)
    with pytest.raises(UserError, match=r"train-000002\.tar: is corrupt: its SHA-256"):
        pack_into(images, shards)
    (images / "a" / "000.png").unlink()
    with pytest.raises(UserError, match="the images or labels differ"):
        pack_into(images, shards)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train-7.tar").touch()
    with pytest.raises(UserError, match=r"train-7\.tar: exists already and was not packed here"):
        pack_into(images, tmp_path / "mine")


def test_a_file_that_is_gone_is_named(write_image, pack_into, tmp_path: Path) -> None:
    write_image(tmp_path / "1.png")
    (tmp_path / "list.txt").write_text("1.png 0\n2.png 1\n")
    with pytest.raises(UserError, match=r"list\.txt:2: .*2\.png: there is no such file"):
        pack_into(tmp_path / "list.txt", tmp_path / "out", "val")
    assert not list((tmp_path / "out").glob("*.tar"))


@pytest.mark.slow
def test_a_command_that_is_killed_goes_on(write_folder, tmp_path: Path) -> None:
    images = write_folder(tmp_path / "images", {"a": 150, "b": 150})
    words = ("data", "pack", images, "--shard-images", 2)
    whole = densekit(*words[:3], tmp_path / "whole", *words[3:])
    assert whole.returncode == 0, whole.stderr
    shards = tmp_path / "killed"
    command = begin_densekit(
        *words[:3], shards, *words[3:], "--threads", 1, output=tmp_path / "output"
    )
    assert command.until(lambda: len(list(shards.glob("*.tar"))) > 3)
    command.kill()
    there = len(list(shards.glob("*.tar")))
    assert there < 150
    assert not (shards / "train-index.npz").exists()
    again = densekit(*words[:3], shards, *words[3:], "--json")
    assert again.returncode == 0, again.stderr
    assert f'"written": {150 - there}' in again.stdout
    assert contents(shards) == contents(tmp_path / "whole")
