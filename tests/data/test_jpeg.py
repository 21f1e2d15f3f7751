"""jpeg.py: any rectangle of any JPEG file is Pillow's to the bit, or left to Pillow."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import functional as F

from densekit.data import jpeg
from densekit.data.config import Interpolation, Rounding
from densekit.data.decode import (
    COVER,
    Box,
    ImageFile,
    JpegFile,
    Resize,
    UnreadableImage,
    decode,
    open_image,
)
from densekit.data.transforms import Preprocessing

SEEN = Preprocessing(resize=40, crop=24)


@pytest.fixture(scope="module", autouse=True)
def _reader() -> None:
    assert jpeg.why_no_reader() is None


def encoded(mode: str, width: int, height: int, **options: object) -> bytes:
    rng = np.random.default_rng(width * 1000 + height)
    noise = rng.integers(0, 256, (height, width, 3), np.uint8)
    blocks = noise[::5, ::5].repeat(5, 0).repeat(5, 1)[:height, :width]
    file = io.BytesIO()
    Image.fromarray(blocks // 2 + noise // 2).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


@settings(max_examples=150, deadline=None)
@given(
    mode=st.sampled_from(["RGB", "L"]),
    width=st.integers(1, 120),
    height=st.integers(1, 120),
    subsampling=st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]),
    progressive=st.booleans(),
    restart=st.sampled_from([0, 1, 3]),
    quality=st.sampled_from([30, 75, 95]),
    data=st.data(),
)
def test_a_rectangle_is_pillows(
    mode: str, width: int, height: int, subsampling: str, progressive: bool, restart: int,
    quality: int, data: st.DataObject,
) -> None:  # fmt: skip
    file = encoded(
        mode, width, height, subsampling=subsampling, progressive=progressive, quality=quality,
        restart_marker_rows=restart,
    )  # fmt: skip
    h, w = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    top, left = data.draw(st.integers(0, height - h)), data.draw(st.integers(0, width - w))
    whole = np.array(Image.open(io.BytesIO(file))).reshape(height, width, -1)
    part = jpeg.read_rectangle(file, whole.shape[2], top, left, h, w)
    assert part is not None
    np.testing.assert_array_equal(part, whole[top : top + h, left : left + w])


PICTURES: dict[str, st.SearchStrategy[Any]] = {
    "mode": st.sampled_from(["RGB", "L"]),
    "width": st.integers(1, 150),
    "height": st.integers(1, 150),
    "subsampling": st.sampled_from(["4:4:4", "4:2:0"]),
}


@settings(max_examples=150, deadline=None)
@given(
    **PICTURES,
    side=st.integers(1, 100),
    mirrored=st.booleans(),
    data=st.data(),
)
def test_a_square_is_torchvisions_of_pillows_pixels(
    mode: str, width: int, height: int, subsampling: str, side: int, mirrored: bool,
    data: st.DataObject,
) -> None:  # fmt: skip
    """Antialiased, larger and smaller, mirrored, to the bit."""
    file = encoded(mode, width, height, subsampling=subsampling)
    h, w = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    top, left = data.draw(st.integers(0, height - h)), data.draw(st.integers(0, width - w))
    whole = np.array(Image.open(io.BytesIO(file))).reshape(height, width, -1)
    part = torch.from_numpy(whole).permute(2, 0, 1)[:, top : top + h, left : left + w]
    square = jpeg.read_square(file, len(part), top, left, h, w, 1, side, mirrored)
    assert square is not None
    theirs = F.resize(part, [side, side], antialias=True)
    assert torch.equal(square, theirs.flip(-1) if mirrored else theirs)


@settings(max_examples=150, deadline=None)
@given(
    **PICTURES,
    data=st.data(),
)
def test_a_window_of_the_resized_image_is_torchvisions(
    mode: str, width: int, height: int, subsampling: str, data: st.DataObject
) -> None:
    """As evaluation cuts it: larger and smaller, wherever it lies, to the bit."""
    file = encoded(mode, width, height, subsampling=subsampling)
    resized = data.draw(st.integers(1, 200)), data.draw(st.integers(1, 200))
    side = data.draw(st.integers(1, min(resized)))
    top, left = (data.draw(st.integers(0, length - side)) for length in resized)
    whole = np.array(Image.open(io.BytesIO(file))).reshape(height, width, -1)
    pixels = torch.from_numpy(whole).permute(2, 0, 1)
    window = jpeg.read_window(file, len(pixels), (height, width), resized, top, left, side)
    assert window is not None
    theirs = F.resize(pixels, [*resized], antialias=True)[:, top : top + side, left : left + side]
    assert torch.equal(window, theirs)


@settings(max_examples=50, deadline=None)
@given(
    size=st.tuples(st.integers(8, 120), st.integers(8, 120)),
    crop=st.integers(8, 60),
    larger=st.one_of(st.none(), st.integers(0, 40)),
    rounding=st.sampled_from(["torchvision", "paddle"]),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
)
def test_what_evaluation_reads_is_what_it_makes_of_the_pixels(
    size: tuple[int, int], crop: int, larger: int | None, rounding: Rounding,
    interpolation: Interpolation,
) -> None:  # fmt: skip
    """Also where the square is larger than the image."""
    file = encoded("RGB", *size)
    resize = None if larger is None else crop + larger
    seen = Preprocessing(resize=resize, crop=crop, rounding=rounding, interpolation=interpolation)
    assert torch.equal(seen.square(open_image(file, 3)), seen(decode(file, 3)))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("mirrored", [True, False])
def test_every_square_is_what_the_whole_image_gives(
    mode: str, interpolation: Interpolation, antialias: bool, mirrored: bool
) -> None:
    file, box = encoded(mode, 131, 97), Box(7, 11, 80, 70)
    resize = Resize(32, interpolation, antialias)
    found = open_image(file, 3).square(box, resize, mirrored)
    theirs = ImageFile(decode(file, 3)).square(box, resize)
    assert torch.equal(found, theirs.flip(-1) if mirrored else theirs)


def test_the_header_is_read_as_pillow_reads_it(sample: list[bytes]) -> None:
    """Or left to Pillow: EXIF may turn an image, a profile does not."""
    exif = Image.Exif()
    exif[0x0112] = 6
    files = [encoded("RGB", 40, 30, icc_profile=b"profile"), encoded("L", 17, 3, comment=b"!")]
    read = [jpeg.plain_size(file) for file in files]
    assert read == [(30, 40, 3), (3, 17, 1)]
    for file in (encoded("RGB", 40, 30, exif=exif), encoded("CMYK", 40, 30), b"\xff\xd8\xff\xe0"):
        assert jpeg.plain_size(file) is None
    read = [jpeg.plain_size(file) for file in sample]
    for file, size in zip(sample, read, strict=True):
        image = Image.open(io.BytesIO(file))
        assert size in (None, (image.height, image.width, len(image.getbands())))
    assert read.count(None) < len(read) / 10


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_grey_and_colour_are_converted_as_pillow_converts(mode: str, channels: int) -> None:
    file = encoded(mode, 61, 47)
    image = open_image(file, channels)
    assert isinstance(image, JpegFile)
    assert (image.height, image.width) == (47, 61)
    theirs = Image.open(io.BytesIO(file)).convert("L" if channels == 1 else "RGB")
    whole = torch.from_numpy(np.array(theirs).reshape(47, 61, channels)).permute(2, 0, 1)
    assert torch.equal(image.pixels(), whole)
    assert torch.equal(image.pixels(Box(3, 5, 20, 31)), whole[:, 3:23, 5:36])


def test_every_image_of_the_sample(sample: list[bytes]) -> None:
    """Photographs, with their own encoders' habits."""
    rng = np.random.default_rng(0)
    for file in sample[:100]:
        whole = torch.from_numpy(np.array(Image.open(io.BytesIO(file)).convert("RGB")))
        image = open_image(file, 3)
        height, width = whole.shape[:2]
        h, w = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
        top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
        part = image.pixels(Box(top, left, h, w))
        assert torch.equal(part, whole.permute(2, 0, 1)[:, top : top + h, left : left + w])
        assert torch.equal(Preprocessing().square(image), Preprocessing()(image.pixels()))


@pytest.fixture(scope="module")
def sample(test_data: Path) -> list[bytes]:
    with tarfile.open(test_data / "imagenet-sample.tar") as tar:
        members = [m for m in tar if m.name.lower().endswith((".jpg", ".jpeg"))]
        return [tar.extractfile(m).read() for m in members]  # type: ignore[union-attr]


def test_what_is_not_plain_goes_to_pillow() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    for file in (encoded("RGB", 40, 30, exif=exif), encoded("CMYK", 40, 30)):
        assert not isinstance(open_image(file, 3), JpegFile)
    assert decode(encoded("RGB", 40, 30, exif=exif), 3).shape == (3, 40, 30)


@pytest.mark.parametrize("cut", [0.3, 0.7, 0.98])
def test_a_truncated_file_is_refused_whatever_part_is_asked_for(cut: float) -> None:
    file = encoded("RGB", 200, 150)
    image = open_image(file[: int(len(file) * cut)], 3)
    with pytest.raises(UnreadableImage, match="truncated"):
        image.pixels(Box(0, 0, 8, 8))


def test_damage_behind_the_last_row_is_refused_as_pillow_does() -> None:
    file = encoded("RGB", 64, 48)
    damaged = file[:-2] + b"\xff\x38" + file[-2:]  # no marker that libjpeg knows
    with pytest.raises(OSError, match="broken data stream"):
        Image.open(io.BytesIO(damaged)).load()
    with pytest.raises(UnreadableImage):
        decode(damaged, 3)
    with pytest.raises(UnreadableImage):  # of which the square has no pixel
        Preprocessing(resize=None, crop=16).square(open_image(damaged, 3))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damage_is_what_pillow_makes_of_it(data: st.DataObject) -> None:
    file = bytearray(encoded("RGB", 64, 48, progressive=data.draw(st.booleans())))
    for _ in range(data.draw(st.integers(1, 4))):
        file[data.draw(st.integers(2, len(file) - 3))] = data.draw(st.integers(0, 255))
    try:
        theirs = np.array(Image.open(io.BytesIO(bytes(file))).convert("RGB"))
    except Exception:
        with pytest.raises(UnreadableImage):
            decode(bytes(file), 3)
        with pytest.raises(UnreadableImage):
            SEEN.square(open_image(bytes(file), 3))
        return
    whole = torch.from_numpy(theirs).permute(2, 0, 1)
    assert torch.equal(decode(bytes(file), 3), whole)
    assert torch.equal(SEEN.square(open_image(bytes(file), 3)), SEEN(whole))
    height, width = whole.shape[1:]
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    part = open_image(bytes(file), 3).pixels(Box(top, left, height - top, width - left))
    assert torch.equal(part, whole[:, top:, left:])


def test_without_a_compiler_pillow_decodes_to_the_same_pixels(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded("RGB", 90, 70))
    script = (
        "import sys; from densekit.data import jpeg; from densekit.data.decode import *\n"
        "part = open_image(sys.argv[1], 3).pixels(Box(9, 20, 30, 40))\n"
        "print(jpeg.why_no_reader()); sys.stdout.flush()\n"
        "sys.stdout.buffer.write(part.contiguous().numpy().tobytes())"
    )
    found = []
    for compiler in ("nonsense++", "g++"):
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "a.jpg")],
            env={"CXX": compiler, "DENSEKIT_CACHE": str(tmp_path), "PATH": "/usr/bin:/bin",
                 "PYTHONPATH": ":".join(sys.path)},
            capture_output=True, check=True,
        )  # fmt: skip
        found.append(done.stdout.split(b"\n", 1))
    assert found[0][0] == b"no C++ compiler was found (nonsense++); install g++"
    assert found[1][0] == b"None"
    assert found[0][1] == found[1][1]


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_a_scaled_square_is_of_the_same_part(scale: int) -> None:
    """Of a smooth photograph: libjpeg's own smaller image, of which nothing is moved."""
    y, x = np.mgrid[0:480, 0:640] / 100
    waves = [np.sin(3 * x + y), np.cos(2 * y - x), np.sin(x * y)]
    pixels = (np.stack(waves, -1) * 100 + 128).astype(np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=95)
    box = (37, 101, 301, 420)
    exact, scaled = (
        jpeg.read_square(content.getvalue(), 3, *box, each, 301 // scale) for each in (1, scale)
    )
    assert exact is not None
    assert scaled is not None
    error = (exact.double() - scaled.double()).square().mean()
    assert not torch.equal(exact, scaled)
    assert 10 * torch.log10(255**2 / error) > 40  # dB


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_a_scaled_square_is_neither_moved_nor_much_softer(scale: int) -> None:
    """Of sharp images and crops whose edges lie between blocks, at the smallest cover: what differs
    from exact decoding is told by least squares in slopes (moved) and curvature (softer)."""
    draw, side = np.random.default_rng(scale), 40
    grains = [draw.integers(0, 256, (1200 // n, 1200 // n), dtype=np.uint8) for n in (3, 8, 30)]
    fine = [Image.fromarray(each).resize((1200, 1200), Image.Resampling.BICUBIC) for each in grains]
    pixels = np.mean([np.asarray(each, float) for each in fine], 0).astype(np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=92)
    parts = []
    for _ in range(12):
        height, width = draw.integers(COVER * side * scale, int(2.4 * side * scale), 2).tolist()
        box = (*draw.integers(0, 1200 - np.array([height, width])).tolist(), height, width)
        exact, scaled = (
            jpeg.read_square(content.getvalue(), 1, *box, each, side) for each in (1, scale)
        )
        assert exact is not None
        assert scaled is not None
        one, other = exact[0].double().numpy(), scaled[0].double().numpy()
        curved = sum(np.roll(one, by, axis) for by in (1, -1) for axis in (0, 1)) - 4 * one
        maps = [*np.gradient(one), curved, other - one]
        parts.append([each[2:-2, 2:-2].ravel() for each in maps])
    *known, difference = np.concatenate(parts, 1)
    found = np.linalg.lstsq(np.array(known).T, difference, rcond=None)[0]
    assert np.abs(found[:2]).max() < 0.005  # pixels of the square
    assert 0 < found[2] < 0.015
    assert 20 * np.log10(255 / difference.std()) > 42  # dB


def test_an_image_is_scaled_as_far_as_the_square_stays_covered() -> None:
    resize = Resize(100, "bilinear", True, scaled=True)
    sizes = [(99, 500), (399, 900), (400, 900), (799, 800), (900, 800), (1599, 9000), (1800, 1600)]
    assert [resize.fraction(*size) for size in sizes] == [1, 1, 2, 2, 4, 4, 8]
    assert resize._replace(scaled=False).fraction(9000, 9000) == 1
