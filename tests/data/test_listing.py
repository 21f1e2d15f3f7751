from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from densekit.config import UserError
from densekit.data import list_lines
from densekit.data.listing import Examples, read_class_names, read_list, readable


def listed(tmp_path: Path, content: str | bytes, delimiter: str | None = None) -> Examples:
    file = tmp_path / "train_list.txt"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_list(file, tmp_path, delimiter)


@pytest.mark.parametrize(
    ("content", "delimiter", "path", "label"),
    [
        ("a/1.jpg 3\n", None, "a/1.jpg", 3),
        ("a/1.jpg\t3", None, "a/1.jpg", 3),
        ("a/my cat  one.jpg \t 12\n", None, "a/my cat  one.jpg", 12),
        ("  a/1.jpg 3  \r\n", None, "a/1.jpg", 3),
        ("a/1, 2.jpg,3\n", ",", "a/1, 2.jpg", 3),
        ("a/my cat.jpg\t3\n", "\t", "a/my cat.jpg", 3),
        ("a/1.jpg  3\n", " ", "a/1.jpg", 3),
        (b"\xef\xbb\xbfa/1.jpg 3\r\n", None, "a/1.jpg", 3),
        ("\n\n a/\u00e9\u2028t\u00e9.jpg 3\n\n", None, "a/\u00e9\u2028t\u00e9.jpg", 3),
    ],
)
def test_a_line_is_a_path_and_the_label_after_the_last_delimiter(
    tmp_path: Path, content: str | bytes, delimiter: str | None, path: str, label: int
) -> None:
    examples = listed(tmp_path, content, delimiter)
    assert examples.paths == [f"{tmp_path}{os.sep}{path}"]
    assert examples.labels.tolist() == [label]
    assert examples.labels.dtype == np.int64
    assert examples.relative(0) == path


@pytest.mark.parametrize(
    ("content", "delimiter", "message"),
    [
        ("a.jpg 0\n\nb.jpg\n", None, ":3: expected a path, whitespace and a label.*'b.jpg'"),
        ("a.jpg 0\nb.jpg x\n", None, ":2: .*'b.jpg x'"),
        ("a.jpg 0\nb.jpg -1\n", None, ":2: .*from 0 up.*'b.jpg -1'"),
        ("a.jpg 1.0\n", None, ":1: "),
        ("a.jpg 1_0\n", None, ":1: "),
        ("a.jpg 99999999999999999999\n", None, ":1: "),
        ("7\n", None, ":1: "),
        ("a.jpg 0\nmy b.jpg,1\n", None, ":2: .*'my b.jpg,1'"),
        ("a.jpg;0\nmy b.jpg,1\n", ";", ':2: .*data.delimiter=","'),
        ("a.jpg 0\n", ",", ":1: expected a path, ',' and a label"),
        ("path,Edema,Mass\na.jpg,0,1\n", None, "with a header line, name the file .csv"),
        (b"a.jpg 0\n\xff\xfeb 1\n", None, ":2: is not UTF-8"),
        ("\n \r\n", None, "lists no images"),
        ("", None, "lists no images"),
    ],
)
def test_a_malformed_line_is_named(
    tmp_path: Path, content: str | bytes, delimiter: str | None, message: str
) -> None:
    with pytest.raises(UserError, match=r"train_list\.txt" + ".*" + message):
        listed(tmp_path, content, delimiter)


def test_where_counts_blank_lines(tmp_path: Path) -> None:
    examples = listed(tmp_path, "a.jpg 0\n\n\nb.jpg 1\n")
    assert examples.where(1) == f"{tmp_path / 'train_list.txt'}:4"
    assert examples.subset([1]).where(0) == examples.where(1)


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.txt: cannot be read: No such file"):
        read_list(tmp_path / "none.txt", tmp_path)


def test_classes_stand_beside_the_list(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("0 n01440764 tench\n\n2\tgreat white shark\r\n")
    examples = listed(tmp_path, "a.jpg 0\n")
    assert examples.classes == {0: "n01440764 tench", 2: "great white shark"}
    assert examples.num_classes == 3
    assert listed(tmp_path, "a.jpg 5\n").num_classes == 6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("cat\n", ":1: expected `label name`"),
        ("0 a\n1\n", ":2: exp"),
        ("0 a\n0 b\n", ":2: .*twice"),
    ],
)
def test_malformed_classes_are_named(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "classes.txt"
    file.write_text(content)
    with pytest.raises(UserError, match=r"classes\.txt" + message):
        read_class_names(file)


def test_the_digest_is_of_relative_paths_labels_and_their_order(tmp_path: Path) -> None:
    (tmp_path / "moved").mkdir()
    one = listed(tmp_path, "a.jpg 0\nb.jpg 1\n").digest()
    assert listed(tmp_path / "moved", "\na.jpg\t0\nb.jpg 1").digest() == one
    others = ["b.jpg 1\na.jpg 0\n", "a.jpg 1\nb.jpg 1\n", "a.jpg 0\n", "a.jpg 0\nc.jpg 1\n"]
    assert len({one, *(listed(tmp_path, text).digest() for text in others)}) == 5


def test_subset_takes_what_it_is_told_in_that_order(tmp_path: Path) -> None:
    examples = listed(tmp_path, "a.jpg 0\nb.jpg 1\nc.jpg 2\n").subset(np.array([2, 0]))
    assert [Path(path).name for path in examples.paths] == ["c.jpg", "a.jpg"]
    assert examples.labels.tolist() == [2, 0]
    assert len(examples) == 2


def test_a_comma_list_is_read_as_one(tmp_path: Path) -> None:
    examples = listed(tmp_path, "cat/1, 2.jpg,0\ncat/3.jpg, 1\n")
    assert [examples.relative(i) for i in range(2)] == ["cat/1, 2.jpg", "cat/3.jpg"]
    assert examples.labels.tolist() == [0, 1]
    assert examples.notes == (
        f"{tmp_path / 'train_list.txt'}: the labels follow a ',', as in 'cat/1, 2.jpg,0'",
    )
    assert listed(tmp_path, "a b.jpg;0\n").relative(0) == "a b.jpg"
    assert listed(tmp_path, "a,b.jpg 0\n").notes == ()
    with pytest.raises(UserError, match=r":2: expected a path, ',' and a label"):
        listed(tmp_path, "a.jpg,0\nb.jpg 1\n")


def test_names_that_are_not_utf8_are_escaped() -> None:
    assert readable(os.fsdecode(b"caf\xe9/1.jpg")) == "caf\\xe9/1.jpg"
    assert readable("café 动物") == "café 动物"


# Plain lines, cut all at once, against a reading line by line -------------------------------

pieces = st.sampled_from(
    ["a", "Z/", "/", "7", "42", "123456789", "0123456789", " ", "\t", "\r", "\n", "\n", ",", ";",
     "\x0b", "\x1c", "\x85", "\xa0", "\u2028", "\u3000", "\u0663", "\xe9", "."]
)  # fmt: skip


def by_line(text: str, root: Path, delimiter: str | None) -> list[tuple[str, int, int]] | int:
    """(path, label, line) of each image; or the number of the line that is none."""
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        if (
            not found
            and delimiter is None
            and (mark := re.search(r"[,;|](?=\s*\d+$)", line.strip()))
        ):
            delimiter = mark[0]
        path, *rest = line.strip().rsplit(delimiter, 1)
        label = rest[0].strip() if rest else ""
        if not (path.strip() and label.isascii() and label.isdecimal() and len(label) < 10):
            return number
        found.append((os.path.join(root, path.strip()), int(label), number))  # noqa: PTH118
    return found or 0


@given(st.lists(pieces, max_size=30).map("".join), st.sampled_from([None, ",", " ", "\t", ";;"]))
@settings(
    deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_lines_are_cut_as_one_by_one(tmp_path: Path, text: str, delimiter: str | None) -> None:
    wanted = by_line(text, tmp_path, delimiter)
    if isinstance(wanted, int):
        with pytest.raises(
            UserError, match=rf"train_list\.txt:{wanted}:" if wanted else "no images"
        ):
            listed(tmp_path, text, delimiter)
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(list_lines, "PART_BYTES", len(text) % 7)
        found = listed(tmp_path, text, delimiter)
    assert found.lines is not None
    got = zip(found.paths, found.labels.tolist(), found.lines, strict=True)
    assert [(path, label, int(line)) for path, label, line in got] == wanted


def test_the_digest_of_names_that_are_not_plain(tmp_path: Path) -> None:
    """As it was first defined: a state that was saved is resumed by it."""
    lines = ["a.jpg 0", f"{tmp_path}/b.jpg 1", "/far/\xe9.jpg 2", "c d.jpg 3"]
    found = listed(tmp_path, "\n".join(lines))
    names = "\0".join(found.relative(i) for i in range(4))
    assert names == "a.jpg\0b.jpg\0/far/\xe9.jpg\0c d.jpg"
    labels = np.arange(4, dtype="<i8").tobytes()
    assert found.digest() == hashlib.sha256(names.encode() + labels).hexdigest()
