"""decode.py: pixels as they were saved, as torchvision reads them, or the reason why not."""

from __future__ import annotations

import contextlib
import io
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torch import Tensor

from densekit.config import UserError
from densekit.data.config import DataConfig
from densekit.data.decode import UnreadableImage, decode, from_image


def picture(width: int = 50, height: int = 40, mode: str = "RGB") -> Image.Image:
    """Smooth, so that JPEG keeps it."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([4 * x + y, 3 * y + x, 2 * x + 2 * y], axis=-1) % 256
    return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(image: Image.Image) -> Tensor:
    array = np.array(image)
    return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize("mode", ["RGB", "L", "1"])
def test_lossless_files_come_back(tmp_path: Path, kind: str, mode: str, channels: int) -> None:
    image = picture(mode=mode)
    file = tmp_path / "image"
    file.write_bytes(encoded(image, kind))
    got = decode(file, channels)
    assert got.dtype == torch.uint8
    assert got.shape == (channels, 40, 50)
    assert torch.equal(got, pixels(image.convert("RGB" if channels == 3 else "L")))
    assert torch.equal(got, decode(str(file), channels))
    assert torch.equal(got, decode(file.read_bytes(), channels))


@pytest.mark.parametrize("options", [{}, {"subsampling": 0, "quality": 95}, {"progressive": True}])
def test_jpeg_is_read_as_torchvision_reads_it(options: dict) -> None:
    data = encoded(picture(333, 251), "JPEG", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        io_ = pytest.importorskip("torchvision.io")
        theirs = io_.decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode="RGB")
    assert torch.equal(decode(data, 3), theirs)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF"])
def test_lossy_formats_are_close(kind: str) -> None:
    options = {"quality": 95} if kind != "GIF" else {}
    got = decode(encoded(picture(), kind, **options), 3)
    assert (got.float() - pixels(picture()).float()).abs().mean() < 8


def test_a_palette_and_alpha_give_the_colours_below() -> None:
    see_through = picture()
    see_through.putalpha(Image.linear_gradient("L").resize(see_through.size))
    assert torch.equal(decode(encoded(see_through, "PNG"), 3), pixels(picture()))
    palette = picture().quantize(16)
    want = pixels(palette.convert("RGB"))
    assert torch.equal(decode(encoded(palette, "PNG", transparency=3), 3), want)
    grey = Image.merge("LA", [picture(mode="L"), picture(mode="L")])
    assert torch.equal(decode(encoded(grey, "PNG"), 1), pixels(picture(mode="L")))


def test_cmyk_is_close_to_its_colours() -> None:
    got = decode(encoded(picture().convert("CMYK"), "JPEG", quality=95), 3)
    assert (got.float() - pixels(picture()).float()).abs().mean() < 8


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_of_16_bits_the_high_8_are_kept(kind: str, channels: int) -> None:
    values = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    image = Image.fromarray(values)
    if kind == "PPM":
        data = b"P5 64 64 65535\n" + values.astype(">u2").tobytes()
    else:
        data = encoded(image, kind)
    got = decode(data, channels)
    assert torch.equal(got[0], torch.from_numpy((values // 256).astype(np.uint8)))
    assert len(got) == channels


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(), kind, exif=exif)
    want = pixels(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert want.shape[1:] == ((50, 40) if orientation > 4 else (40, 50))
    assert torch.equal(decode(data, 3), want)
    assert torch.equal(from_image(Image.open(io.BytesIO(data)), 3), want)


def test_broken_exif_leaves_the_image_as_it_is() -> None:
    data = encoded(picture(), "JPEG", exif=b"Exif\0\0garbage of no use")
    assert torch.equal(decode(data, 3), pixels(Image.open(io.BytesIO(data))))


def test_of_several_frames_the_first_is_taken() -> None:
    other = picture().rotate(90)
    data = encoded(picture(), "TIFF", save_all=True, append_images=[other])
    assert torch.equal(decode(data, 3), pixels(picture()))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"no image at all", "is not an image that PIL can read"),
        (half(encoded(noise(), "JPEG")), "cannot be read as an image: .*truncated"),
        (half(encoded(noise(), "PNG")), "cannot be read as an image: .*truncated"),
        (half(encoded(noise(), "BMP")), "cannot be read as an image: .*truncated"),
        (encoded(picture(), "PNG")[:20], "cannot be read as an image|not an image"),
        (encoded(picture(mode="F"), "TIFF"), "32-bit pixels have no agreed range; save"),
        (encoded(picture(mode="I"), "TIFF"), "32-bit pixels"),
    ],
)
def test_an_unreadable_file_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    file = tmp_path / "bad.png"
    file.write_bytes(content)
    with pytest.raises(UnreadableImage, match=rf"^{file}: .*({reason})") as caught:
        decode(file, 3)
    assert caught.value.file == str(file)
    with pytest.raises(UnreadableImage, match=rf"^bytes: .*({reason})"):
        from_image(content, 3)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match=r"none\.png: there is no such file"):
        decode(tmp_path / "none.png", 3)
    with pytest.raises(UnreadableImage, match=r"is a folder"):
        decode(tmp_path, 3)


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(["JPEG", "PNG", "TIFF", "GIF", "BMP", "WEBP"]), data=st.data())
def test_damage_gives_an_image_or_an_unreadable_one(kind: str, data: st.DataObject) -> None:
    content = bytearray(encoded(picture(16, 12), kind))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(UnreadableImage):  # nothing else may come out
            assert decode(bytes(content), 3).shape[0] == 3


def test_an_unreadable_image_survives_a_pipe() -> None:
    error = pickle.loads(pickle.dumps(UnreadableImage("a.png", "is empty").at("list.txt:3")))
    assert isinstance(error, UserError)
    assert (str(error), error.file, error.place) == (
        "list.txt:3: a.png: is empty", "a.png", "list.txt:3"
    )  # fmt: skip
    assert str(UnreadableImage("a.png", "is empty").at("a.png")) == "a.png: is empty"


# What predict takes -------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_images_arrays_bytes_and_paths_are_one(tmp_path: Path, mode: str, channels: int) -> None:
    image = picture(mode=mode)
    file = tmp_path / "a.png"
    image.save(file)
    array = np.asarray(image)
    forms = [image, array, array[..., None] if mode == "L" else array, file.read_bytes(), file]
    want = decode(file, channels)
    for form in [*forms, str(file), Image.open(file)]:
        assert torch.equal(from_image(form, channels), want)


def test_an_array_need_not_be_contiguous() -> None:
    array = np.asarray(picture())
    assert torch.equal(from_image(array[::-1, ::2], 3), pixels(picture())[:, :, ::2].flip(1))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((3, 5, 6), np.uint8),
        np.zeros((2, 4, 4, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
    ],
)
def test_other_arrays_are_refused(image: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"expected a uint8 array of shape \[H, W\].*got"):
        from_image(image, 3)


def test_other_things_are_refused() -> None:
    with pytest.raises(UserError, match=r"expected a path, bytes, a PIL image.*got Tensor"):
        from_image(torch.zeros(3, 4, 4), 3)  # type: ignore[arg-type]


def test_a_pil_image_that_fails_late_is_named(tmp_path: Path) -> None:
    file = tmp_path / "cut.jpg"
    file.write_bytes(half(encoded(noise(), "JPEG")))
    with pytest.raises(UnreadableImage, match=r"cut\.jpg: cannot be read as an image"):
        from_image(Image.open(file), 3)


# The limit on pixels ------------------------------------------------------------------------


def test_images_of_too_many_pixels_are_refused_with_the_way_on(tmp_path: Path) -> None:
    picture(20, 30).save(tmp_path / "large.png")
    for source in (tmp_path / "large.png", (tmp_path / "large.png").read_bytes()):
        with pytest.raises(
            UnreadableImage, match=r"more than 599 pixels; .*raise data\.max_pixels .*--max-pixels"
        ):
            decode(source, 3, max_pixels=599)
        assert decode(source, 3, max_pixels=600).shape == (3, 30, 20)


def test_the_limit_is_raised_beyond_pils_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """PIL's is one for the process: it stays as it is unless a higher one is asked for."""
    picture(20, 30).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)  # PIL refuses from 400 on
    with pytest.raises(UnreadableImage, match="more than 400 pixels"):
        decode(tmp_path / "large.png", 3, max_pixels=400)
    assert Image.MAX_IMAGE_PIXELS == 200
    assert decode(tmp_path / "large.png", 3, max_pixels=1000).shape == (3, 30, 20)


def test_the_default_limit_is_pils() -> None:
    assert DataConfig().max_pixels == 2 * Image.MAX_IMAGE_PIXELS
