"""Shards against Python's tarfile; what is damaged or cut off is said."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densekit.config import UserError
from densekit.data.shards.tar import ImageLabels, read_samples, write_samples

Samples = list[tuple[str, str, bytes, ImageLabels]]
NAMES = st.text("abcXYZ059_-é", min_size=1, max_size=12)
LABEL_SETS = st.tuples(st.frozensets(st.integers(0, 9)), st.frozensets(st.integers(10, 19)))
SAMPLES = st.lists(
    st.tuples(
        st.lists(NAMES, min_size=1, max_size=3).map("/".join),
        st.sampled_from((".jpg", ".png", ".seg.webp")),
        st.binary(max_size=1500),
        st.integers(0, 10**9 - 1) | LABEL_SETS,
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda sample: sample[0],
)


def written(samples: Samples) -> io.BytesIO:
    out = io.BytesIO()
    write_samples(out, samples)
    return out


def read(file: io.BytesIO) -> Samples:
    content = file.getvalue()
    return [
        (s.key, s.suffix, content[s.offset : s.offset + s.size], s.labels)
        for s in read_samples(file, "some.tar")
    ]


@given(SAMPLES)
def test_what_is_written_is_read(samples: Samples) -> None:
    file = written(samples)
    assert read(file) == samples
    assert written(samples).getvalue() == file.getvalue()


@given(SAMPLES, st.data())
def test_a_shard_that_is_cut_off_is_said(samples: Samples, data: st.DataObject) -> None:
    whole = written(samples).getvalue()
    end = whole.rstrip(b"\0")
    size = data.draw(st.integers(0, len(end) - 1))
    with pytest.raises(UserError, match=r"some\.tar: .*(truncated|corrupt|expected|no label)"):
        read(io.BytesIO(whole[:size]))


@given(SAMPLES, st.data())
def test_a_damaged_header_is_not_the_end(samples: Samples, data: st.DataObject) -> None:
    content = bytearray(written(samples).getvalue())
    with tarfile.open(fileobj=io.BytesIO(bytes(content))) as tar:
        headers = [member.offset for member in tar]
    place = data.draw(st.sampled_from(headers)) + data.draw(st.integers(0, 147))  # what it sums
    content[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(UserError, match=r"some\.tar: .*corrupt"):
        read(io.BytesIO(bytes(content)))


def others(*members: tuple[str, bytes]) -> io.BytesIO:
    """A tar file as other programs write it, of the default format."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        folder = tarfile.TarInfo("a")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out


def test_other_programs_shards() -> None:
    long = "é" * 120
    file = others(
        ("a/1.5.jpg", b"x"), ("a/1.cls", b"7\n"), ("a/1.txt", b"a caption"),
        (f"{long}.JPEG", b"yy"), (f"{long}.json", b'{"label": 2, "file": "b"}'),
    )  # fmt: skip
    assert read(file) == [("a/1", ".5.jpg", b"x", 7), (long, ".JPEG", b"yy", 2)]


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ((("1.jpg", b"x"),), "1: has no label"),
        ((("1.jpg", b"x"), ("1.png", b"x"), ("1.cls", b"0")), r"1: expected one image .*\.png"),
        ((("1.cls", b"0"),), "1: expected one image"),
        ((("1.jpg", b"x"), ("1.cls", b"cat")), r"1\.cls: holds no label: b'cat'"),
        ((("1.jpg", b"x"), ("1.json", b'{"label": -1}')), r"1\.json: holds no label"),
        ((("1.jpg", b"x"), ("1.json", b'{"labels": 3}')), r"1\.json: holds no label"),
        ((("1.jpg", b"x"), ("1.json", b"[")), r"1\.json: holds no label"),
    ],
)
def test_what_is_no_sample_is_named(members: tuple[tuple[str, bytes], ...], said: str) -> None:
    with pytest.raises(UserError, match=rf"some\.tar: {said}"):
        read(others(*members))
