"""What stands in a file of 8 or 16 bits is what is read, or the file is refused by name."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from densekit.data.decode import UnreadableImage, decode
from densekit.data.intensity import Intensity
from densekit.data.pixels import image_pixels
from runs import digits

FULL = Intensity("full")
PLENTY = 10**6


@pytest.fixture(scope="module")
def grey16() -> np.ndarray:
    """A real digit with 16 bits in use: every pixel of its own low byte, uint16 [28, 28]."""
    pixels = digits()[0][7].reshape(28, 28).astype(np.uint16)
    return pixels * 256 + np.arange(28 * 28, dtype=np.uint16).reshape(28, 28) % 251


def bits(square: torch.Tensor) -> np.ndarray:
    """[C, H, W] in 0..1 -> the 16-bit values that it was made of, [H, W, C]."""
    assert square.dtype == torch.float32
    return (square.double() * 65535).round().numpy().astype(np.uint16).transpose(1, 2, 0)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".npy"])
def test_sixteen_bits_of_grey_without_loss(tmp_path: Path, grey16: np.ndarray, suffix: str) -> None:
    file = tmp_path / f"xray{suffix}"
    if suffix == ".npy":
        np.save(file, grey16)
    else:
        Image.fromarray(grey16).save(file)
    np.testing.assert_array_equal(bits(decode(file, 1, intensity=FULL))[..., 0], grey16)


def test_every_value_of_sixteen_bits_is_told_apart(tmp_path: Path) -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    np.save(tmp_path / "all.npy", values)
    square = decode(tmp_path / "all.npy", 1, intensity=FULL)
    np.testing.assert_array_equal(bits(square)[..., 0], values)
    assert square.unique().numel() == 65536


def test_eight_and_sixteen_bits_mean_the_same(tmp_path: Path) -> None:
    eight = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(eight).save(tmp_path / "8.png")
    Image.fromarray(eight.astype(np.uint16) * 257).save(tmp_path / "16.png")
    one, other = (decode(tmp_path / f"{n}.png", 1, intensity=FULL) for n in (8, 16))
    assert torch.equal(one, other)


def test_colour_of_sixteen_bits(tmp_path: Path) -> None:
    """PIL keeps 8 of them, and does not say so."""
    values = np.random.default_rng(0).integers(0, 65536, (9, 7, 3)).astype(np.uint16)
    (tmp_path / "rgb.png").write_bytes(cv2.imencode(".png", values)[1].tobytes())
    with pytest.raises(UnreadableImage, match="PNG with 16-bit colour"):
        decode(tmp_path / "rgb.png", 3, intensity=FULL)
    tifffile.imwrite(tmp_path / "rgb.tif", values, photometric="rgb")
    square = decode(tmp_path / "rgb.tif", 3, intensity=FULL)
    np.testing.assert_array_equal(bits(square), values)


@pytest.mark.parametrize("how", ["contig", "separate", "pages"])
def test_tiff_of_five_channels(tmp_path: Path, how: str) -> None:
    values = np.random.default_rng(1).integers(0, 65536, (11, 6, 5)).astype(np.uint16)
    planes = values if how == "contig" else np.moveaxis(values, -1, 0)
    layout = {} if how == "pages" else {"planarconfig": how}
    tifffile.imwrite(tmp_path / "five.tif", planes, photometric="minisblack", **layout)
    square = decode(tmp_path / "five.tif", 5, intensity=FULL)
    np.testing.assert_array_equal(bits(square), values)


def test_an_array_of_any_number_of_channels(tmp_path: Path) -> None:
    values = np.random.default_rng(2).integers(0, 256, (6, 4, 7), np.uint8)
    np.save(tmp_path / "seven.npy", values)
    square = decode(tmp_path / "seven.npy", 7)
    assert square.dtype == torch.uint8
    np.testing.assert_array_equal(square.permute(1, 2, 0).numpy(), values)


@pytest.mark.parametrize("white_is", ["miniswhite", "minisblack"])
def test_a_negative_is_turned_round(tmp_path: Path, grey16: np.ndarray, white_is: str) -> None:
    tifffile.imwrite(tmp_path / "n.tif", grey16, photometric=white_is)
    found = bits(decode(tmp_path / "n.tif", 1, intensity=FULL))[..., 0]
    expected = grey16 if white_is == "minisblack" else 65535 - grey16
    np.testing.assert_array_equal(found, expected)


def test_channels_are_fitted_where_nothing_is_lost() -> None:
    grey = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6))
    for mode in ("RGB", "RGBA", "LA", "P"):
        one = FULL.apply(image_pixels(grey.convert(mode)), 1)
        assert torch.equal(one, FULL.apply(image_pixels(grey), 1)), mode
    three = FULL.apply(image_pixels(grey), 3)
    assert all(torch.equal(channel, three[0]) for channel in three)
    clear = grey.convert("LA")
    clear.putpixel((0, 0), (7, 3))
    with pytest.raises(ValueError, match=r"has 2 channels that differ, but the network takes 1"):
        FULL.apply(image_pixels(clear), 1)


def save_array(file: Path, values: np.ndarray) -> Path:
    np.save(file, values)
    return file


def save_image(file: Path, values: np.ndarray) -> Path:
    Image.fromarray(values).save(file)
    return file


REFUSED = {
    "16 bits for 8": (np.zeros((4, 4), np.uint16), 1, "8bit", "uint16 values, but data.intensity"),
    "colour for grey": (np.eye(4, dtype=np.uint8)[..., None] * [1, 2, 3], 1, "full", "has 3 chan"),
    "three for five": (np.zeros((4, 4, 3), np.uint8), 5, "8bit", "data.channels=5"),
    "channels first": (np.zeros((3, 40, 40), np.uint8), 3, "8bit", "has 40 channels"),
    "floats have no range": (np.zeros((4, 4), np.float32), 1, "full", "have no full range"),
    "not finite": (np.full((4, 4), np.nan), 1, "percentile", "not finite"),
    "no window": (np.zeros((4, 4), np.uint16), 1, "window", "no window of its own"),
    "four axes": (np.zeros((2, 2, 2, 2), np.uint8), 2, "8bit", "shape [2, 2, 2, 2]"),
    "complex": (np.zeros((4, 4), np.complex64), 1, "full", "array of complex64"),
    "empty": (np.zeros((0, 4), np.uint8), 1, "8bit", "shape [0, 4]"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_does_not_fit_is_named(tmp_path: Path, case: str) -> None:
    values, channels, rule, words = REFUSED[case]
    file = save_array(tmp_path / "scan.npy", values)
    with pytest.raises(UnreadableImage) as error:
        decode(file, channels, intensity=Intensity(rule))  # type: ignore[arg-type]
    assert str(error.value).startswith(f"{file}: ")
    assert words in str(error.value)


def test_arrays_of_objects_are_not_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "o.npy", np.array([[print]], dtype=object), allow_pickle=True)
    with pytest.raises(UnreadableImage, match="allow_pickle=False"):
        decode(tmp_path / "o.npy", 1)


@pytest.mark.parametrize("kind", ["npy", "tif"])
def test_the_limit_on_pixels_holds(tmp_path: Path, kind: str) -> None:
    file, values = tmp_path / f"large.{kind}", np.zeros((40, 40, 5), np.uint8)
    np.save(file, values) if kind == "npy" else tifffile.imwrite(
        file, values, photometric="minisblack", planarconfig="contig"
    )
    with pytest.raises(UnreadableImage, match="more than 1,000 pixels"):
        decode(file, 5, max_pixels=1000)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    for name, content in {
        "cut.npy": b"\x93NUMPY\x01",
        "cut.tif": b"II*\0\x08\0\0\0\xff\xff",
        "cut.dcm": bytes(128) + b"DICM" + b"\xff" * 9,
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UnreadableImage, match=name):
            decode(tmp_path / name, 5)


@pytest.mark.parametrize(("module", "extra"), [("pydicom", "dicom"), ("tifffile", "tiff")])
def test_a_missing_library_is_named(tmp_path: Path, module: str, extra: str) -> None:
    """In a process of its own, in which there is none."""
    content = io.BytesIO()
    tifffile.imwrite(content, np.zeros((4, 4, 5), np.uint8), planarconfig="contig")
    files = {"pydicom": bytes(128) + b"DICM", "tifffile": content.getvalue()}
    (tmp_path / "image").write_bytes(files[module])
    code = (
        f"import sys; sys.modules[{module!r}] = None\n"
        f"from densekit.data.decode import decode\ndecode({str(tmp_path / 'image')!r}, 5)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f'needs {module}: pip install "densekit[{extra}]"' in result.stderr
