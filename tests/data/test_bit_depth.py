"""Files of 16 bits that hold 12 are said, since a network would see them nearly black."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densekit.data.bit_depth import dark_files
from densekit.data.checks import check_examples
from densekit.data.decode import decode
from densekit.data.listing import Examples


def write(file: Path, largest: int, dtype: type = np.uint16) -> Path:
    """An image with values from 0 to `largest`."""
    values = np.linspace(0, largest, 40 * 30).reshape(40, 30).astype(dtype)
    Image.fromarray(values).save(file)
    return file


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_twelve_bits_in_sixteen(tmp_path: Path, suffix: str) -> None:
    file = write(tmp_path / f"xray{suffix}", 4095)
    assert decode(file, 1).max() == 15, "which is nearly black"
    (said,) = dark_files([file])
    assert said.startswith(f"{file}: a 16-bit image whose largest value is 4095, 12 bits")
    assert said.endswith("or multiply their values by 16")


def test_files_are_taken_together(tmp_path: Path) -> None:
    """A picture may be dark by itself."""
    files = [write(tmp_path / f"{i}.png", 900 + i) for i in range(5)]
    (said,) = dark_files(files)
    assert "4.png: a 16-bit image whose largest value is 904" in said
    assert "5 such files of 5" in said
    assert dark_files([*files, write(tmp_path / "bright.png", 60000)]) == []


def test_other_files_are_none_of_it(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n")
    files = [tmp_path / "broken.png", tmp_path / "missing.png", tmp_path]
    assert dark_files([*files, write(tmp_path / "eight.png", 9, np.uint8)]) == []
    assert dark_files([]) == []


def test_it_is_said_before_training(tmp_path: Path) -> None:
    paths = [str(write(tmp_path / f"{i}.png", 1023)) for i in range(3)]
    examples = Examples(paths, np.array([0, 1, 1]), {}, str(tmp_path), str(tmp_path))
    _, warnings = check_examples(examples, 2, sample=64, channels=1)
    assert any("10 bits" in text and "multiply their values by 64" in text for text in warnings)
