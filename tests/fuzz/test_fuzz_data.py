"""List files, class names and images, of any content."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from densekit.config import UserError
from densekit.data.classes import names_by_output
from densekit.data.decode import decode
from densekit.data.listing import read_list

PIECES = [
    b"cat/1.jpg 0\n", b"dog/2.jpg\t1\n", b"a b.jpg,2\r\n", b"x;3\n", b"y|4\n", b"z 99999999999\n",
    b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b"\n\n", b"  ", b"caf\xe9.jpg 0\n", b"1 cat\n", b"2\n",
    "\u0663.jpg \u0663\n".encode(), b"-1 -1\n", b"0 0 0\n",
]  # fmt: skip
contents = st.one_of(
    st.binary(max_size=200),
    st.lists(st.sampled_from(PIECES) | st.binary(max_size=5), max_size=20).map(b"".join),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lists")


@given(contents, st.sampled_from([None, " ", ",", "::", "\t"]))
def test_any_list_is_read_or_refused(folder: Path, content: bytes, delimiter: str | None) -> None:
    file = folder / "train_list.txt"
    file.write_bytes(content)
    with contextlib.suppress(UserError):
        found = read_list(file, folder, delimiter)
        assert len(found) == len(found.labels) > 0
        assert found.labels.min() >= 0
        assert len(found.digest()) == 64


@given(contents, st.integers(1, 5))
def test_any_class_names_are_read_or_refused(folder: Path, content: bytes, outputs: int) -> None:
    file = folder / "names.txt"
    file.write_bytes(content)
    with contextlib.suppress(UserError):
        assert len(names_by_output(file, outputs, "--classes")) == outputs


def encoded(kind: str, mode: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 4), dtype=np.uint8)
    image, content = Image.fromarray(pixels).convert(mode), io.BytesIO()
    image.save(content, kind)
    return content.getvalue()


IMAGES = [
    encoded(kind, mode)
    for kind, mode in (
        ("PNG", "RGB"), ("PNG", "L"), ("PNG", "P"), ("PNG", "RGBA"), ("JPEG", "RGB"), ("JPEG", "L"),
        ("JPEG", "CMYK"), ("GIF", "P"), ("BMP", "RGB"), ("TIFF", "RGB"), ("TIFF", "1"),
        ("WEBP", "RGB"), ("PPM", "RGB"),
    )
]  # fmt: skip
edits = st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=4)), max_size=4)


@given(st.sampled_from(IMAGES), edits, st.floats(0, 1), st.sampled_from([1, 3]))
def test_any_image_is_decoded_or_refused(
    image: bytes, changes: list[tuple[float, bytes]], kept: float, channels: int
) -> None:
    content = bytearray(image)
    for where, new in changes:
        at = int(where * len(content))
        content[at : at + len(new)] = new
    damaged = bytes(content[: max(1, int(kept * len(content)))] if changes else content)
    with contextlib.suppress(UserError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's own, of what it reads all the same
        found = decode(damaged, channels)
        assert found.dtype == torch.uint8
        assert found.shape[0] == channels
