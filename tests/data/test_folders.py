from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from densekit.config import UserError
from densekit.data.folders import class_folders, image_suffixes, images_below, read_folder


def test_a_folder_is_read_as_torchvision_reads_it(
    tmp_path: Path, write_folder, write_image
) -> None:
    write_folder(tmp_path, {"dog": 3, "Cat": 2, "a-b": 1, "a b": 1})
    write_image(tmp_path / "a-b/x/y/deep.JPG")
    write_image(tmp_path / "a-b/x-y/deep.JPEG")
    write_image(tmp_path / "stray.png")
    (tmp_path / "dog/notes.txt").write_text("no image")
    ours, theirs = read_folder(tmp_path), ImageFolder(str(tmp_path))
    assert list(zip(ours.paths, ours.labels.tolist(), strict=True)) == theirs.samples
    assert ours.classes == dict(enumerate(theirs.classes))
    assert ours.lines is None
    assert ours.where(3) == ours.paths[3]


def test_hidden_files_and_folders_are_no_images(tmp_path: Path, write_folder, write_image) -> None:
    write_folder(tmp_path, {"cat": 1, "dog": 1, ".ipynb_checkpoints": 1})
    write_image(tmp_path / "cat/.ipynb_checkpoints/0.png")
    (tmp_path / "dog/._000.png").write_bytes(b"a Mac's resource fork")
    assert read_folder(tmp_path).labels.tolist() == [0, 1]


def test_an_empty_class_folder_is_named(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path, {"cat": 1})
    (tmp_path / "dog").mkdir()
    with pytest.raises(UserError, match=r"dog: this class folder holds no images"):
        read_folder(tmp_path)


def test_a_folder_without_class_folders_is_refused(tmp_path: Path, write_image) -> None:
    with pytest.raises(UserError, match="holds no images and no class folders"):
        read_folder(tmp_path)
    write_image(tmp_path / "1.png")
    with pytest.raises(UserError, match=r"images such as 1\.png, but no class folders; make one"):
        read_folder(tmp_path)


def test_what_systems_leave_is_no_class(tmp_path: Path, write_folder, write_image) -> None:
    write_folder(tmp_path, {"cat": 1, "dog": 1, "__MACOSX": 1, ".Trash-1000": 1, "@eaDir": 1})
    write_image(tmp_path / "cat/@eaDir/0.png")
    assert class_folders(tmp_path) == ["cat", "dog"]
    assert len(read_folder(tmp_path)) == 2


def test_every_format_that_pil_reads_is_read(tmp_path: Path, write_image) -> None:
    assert image_suffixes() >= {".jpg", ".jfif", ".jp2", ".tga", ".webp", ".png", ".tif", ".gif"}
    assert not image_suffixes() & {".txt", ".pdf", ".h5", ".eps", ".mpg"}
    for name in "a.jfif", "b.tga", "c.jp2", "d.bmp":
        write_image(tmp_path / "cat" / name)
    assert [Path(path).name for path in read_folder(tmp_path).paths] == [
        "a.jfif", "b.tga", "c.jp2", "d.bmp"
    ]  # fmt: skip


def test_what_is_left_out_is_counted_by_suffix(tmp_path: Path, write_folder, write_image) -> None:
    write_folder(tmp_path, {"cat": 2, "dog": 1})
    for name in "cat/a.txt", "cat/b.TXT", "dog/deep/c.txt", "dog/README", "dog/d.xyz":
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"?")
    write_image(tmp_path / "loose.png")
    (tmp_path / "classes.txt").write_text("0 cat\n")
    assert read_folder(tmp_path).notes == (
        f"{tmp_path}: left out as not images: 3 .txt, 1 without a suffix, 1 .xyz",
        f"{tmp_path}: 1 images outside the class folders are left out",
    )


@pytest.mark.skipif(os.name != "posix", reason="links and pipes")
def test_links_are_followed_but_not_into_themselves(tmp_path: Path, write_folder) -> None:
    """A link to `..` made a class of all classes."""
    data = write_folder(tmp_path / "data", {"cat": 3, "dog": 2})
    elsewhere = write_folder(tmp_path / "elsewhere", {"more": 2, "same": 1})
    (data / "cat/all").symlink_to("..")
    (data / "dog/more").symlink_to(elsewhere / "more")
    (data / "dog/again").symlink_to(elsewhere / "more")
    (data / "bird").symlink_to(elsewhere / "same")
    (elsewhere / "more/back").symlink_to(data / "dog")  # a loop over two folders
    examples = read_folder(data)
    assert examples.classes == {0: "bird", 1: "cat", 2: "dog"}
    assert examples.labels.tolist() == [0] + [1] * 3 + [2] * 4
    assert len({os.path.realpath(path) for path in examples.paths}) == 8
    assert len(examples.notes) == 3
    assert any(note.startswith(f"{data}/cat/all: not followed") for note in examples.notes)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes")
def test_a_pipe_is_left_out(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path, {"cat": 1})
    os.mkfifo(tmp_path / "cat/x.jpg")
    (tmp_path / "cat/nowhere.jpg").symlink_to("missing.jpg")
    found = images_below(tmp_path / "cat")
    assert [Path(path).name for path in found.paths] == ["000.png", "nowhere.jpg"]
    assert found.left_out() == "1 .jpg that are no regular files"


@pytest.mark.skipif(os.name != "posix", reason="names of bytes")
def test_a_latin1_class_has_a_name(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path, {"cafe": 2, "tea": 1})
    (tmp_path / "cafe").rename(tmp_path / os.fsdecode(b"caf\xe9"))
    examples = read_folder(tmp_path)
    assert sorted(examples.classes.values()) == ["caf\\xe9", "tea"]
    with Image.open(examples.paths[0]) as image:
        assert image.size == (10, 8)
    assert examples.where(0).encode().endswith(b"caf\\xe9/000.png")
    assert len(examples.digest()) == 64
