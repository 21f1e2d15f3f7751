"""inputs.py: what is typed becomes names, in order, as they are read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from densekit.config import UserError
from densekit.infer.inputs import image_names, is_list, listed_names


def test_files_stay_and_folders_are_walked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("b/2.png", "b/1.JPG", "a/deep/3.jpeg", "notes.xyz", ".hidden.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    gone, text = str(tmp_path / "gone.png"), str(tmp_path / "notes.xyz")
    found = list(image_names([gone, str(tmp_path), text]))
    assert found[0] == gone
    assert found[-1] == text, "what is named is taken, whatever its suffix"
    walked = [str(Path(file).relative_to(tmp_path)) for file in found[1:-1]]
    assert walked == ["a/deep/3.jpeg", "b/1.JPG", "b/2.png"]
    assert "left out as not images: 1 .xyz" in capsys.readouterr().err


def test_a_list_names_a_file_on_each_line(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_bytes(
        b"\xef\xbb\xbfa.jpg\r\n\n  cat/a b.png 7\n/root/c.jpeg 12\ns3://bucket/d e.jpg\nphoto 12\n"
        b"\xe9.jpg\ncat/5.txt 3"
    )
    assert list(image_names([str(file), "x.png"])) == [
        str(tmp_path / "a.jpg"),
        str(tmp_path / "cat/a b.png"),  # the label of a training list is none of the name
        "/root/c.jpeg",
        "s3://bucket/d e.jpg",
        str(tmp_path / "photo 12"),  # no label, since what is before it names no image
        os.fsdecode(os.fsencode(tmp_path) + b"/\xe9.jpg"),
        str(tmp_path / "cat/5.txt 3"),
        "x.png",
    ]


def test_a_list_is_read_as_it_is_needed(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_text("a.jpg\n" * 100_000)
    names = listed_names(file)
    assert next(names) == str(tmp_path / "a.jpg")
    assert sum(1 for _ in names) == 99_999


def test_a_list_of_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("\n \n")
    with pytest.raises(UserError, match=r"list\.txt: lists no images"):
        list(image_names([str(tmp_path / "list.txt")]))
    assert not is_list(str(tmp_path / "gone.txt")), "what is not there is a row that says so"
