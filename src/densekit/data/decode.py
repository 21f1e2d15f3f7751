"""Decodes a file, its bytes, or an image in memory to pixels.

They are uint8, or float32 in 0..1 if `data.intensity` is not 8bit. Shapes: C channels, H height,
W width.
"""

from __future__ import annotations

import contextlib
import io
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from densekit.config import UserError
from densekit.data import jpeg
from densekit.data.config import MAX_PIXELS, Interpolation
from densekit.data.intensity import Intensity
from densekit.data.listing import Content
from densekit.data.pixels import (
    array_pixels,
    image_pixels,
    is_16_bit,
    is_pils,
    read_pixels,
    turn_of,
    upright,
)

MODES = {1: "L", 3: "RGB"}
COVER = 2  # as Pillow's thumbnail: at 1 a scaled image would be too soft, see input-pipeline.md
EIGHT_BITS = Intensity()


class UnreadableImage(UserError):  # noqa: N818 (named for what is wrong)
    """A file that is missing, empty, truncated, or not an image; the message names it."""

    def __init__(self, file: str, reason: str, place: str = "") -> None:
        at = f"{place}: " if place and place != file else ""
        super().__init__(f"{at}{file}: {reason}")
        self.file, self.reason, self.place = file, reason, place

    def __reduce__(self) -> tuple[type[UnreadableImage], tuple[str, str, str]]:
        return type(self), (self.file, self.reason, self.place)  # so that it survives pickling

    def at(self, place: str) -> UnreadableImage:
        """The same error, for an image listed at `place`, `file:line`."""
        return UnreadableImage(self.file, self.reason, place)


class TooManyPixels(UnreadableImage):
    """An image over the limit; only its size was read."""


class Box(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


class Resize(NamedTuple):
    """A resize to a square of `side` pixels."""

    side: int
    interpolation: Interpolation
    antialias: bool
    scaled: bool = False
    """Whether a JPEG file may be decoded at a fraction of its size that still covers the square
    COVER times."""

    def fraction(self, height: int, width: int) -> int:
        """The denominator of that fraction for a part of this size: 1, 2, 4 or 8."""
        most = min(height, width) // (COVER * self.side) if self.scaled else 1
        return next(n for n in (8, 4, 2, 1) if n <= max(most, 1))


class ImageFile:
    """An image whose header has been read; its pixels are decoded on demand."""

    def __init__(self, whole: Tensor, name: str = "") -> None:
        """`whole`: decoded pixels, [C, H, W]."""
        self.name, self.whole = name, whole
        self.height, self.width = whole.shape[1:]

    def pixels(self, box: Box | None = None) -> Tensor:
        """[C, H, W], or [C, height, width] of `box`. Raises UnreadableImage."""
        if box is None:
            return self.whole
        top, left, height, width = box
        return self.whole[:, top : top + height, left : left + width]

    def square(self, box: Box, resize: Resize, mirrored: bool = False) -> Tensor:
        """[C, side, side]: `box` resized, then mirrored if asked. Raises UnreadableImage."""
        size, mode = [resize.side, resize.side], InterpolationMode(resize.interpolation)
        resized = F.resize(self.pixels(box), size, mode, antialias=resize.antialias)
        return resized.flip(-1) if mirrored else resized

    def window(self, resized: tuple[int, int], top: int, left: int, resize: Resize) -> Tensor:
        """[C, side, side], cut at (top, left) from the whole image in the size of `resized`,
        height and width. Raises UnreadableImage."""
        mode, side = InterpolationMode(resize.interpolation), resize.side
        whole = F.resize(self.pixels(), [*resized], mode, antialias=resize.antialias)
        return whole[:, top : top + side, left : left + side]


class JpegFile(ImageFile):
    """A grey or colour JPEG file that needs no rotation."""

    def __init__(
        self, content: bytes, size: tuple[int, int], bands: int, channels: int, name: str
    ) -> None:
        self.name, self.content, self.bands, self.channels = name, content, bands, channels
        self.height, self.width = size

    def pixels(self, box: Box | None = None) -> Tensor:
        """Decodes only the rectangle; bit for bit the pixels of a full decode."""
        box = box or Box(0, 0, self.height, self.width)
        found = jpeg.read_rectangle(self.content, self.bands, *box)
        if found is None:
            with _damage_named(self.name):
                return ImageFile(_to_tensor(_open_jpeg(self.content), self.channels)).pixels(box)
        if self.bands != self.channels:
            converted = Image.fromarray(found.squeeze(2) if self.bands == 1 else found)
            found = np.array(converted.convert(MODES[self.channels]))
        return _channels_first(found)

    def square(self, box: Box, resize: Resize, mirrored: bool = False) -> Tensor:
        """Resized as it is decoded, where that is to the bit what torchvision makes of it."""
        if self._resized_here(resize):
            scale = resize.fraction(box.height, box.width)
            found = jpeg.read_square(self.content, self.bands, *box, scale, resize.side, mirrored)
            if found is not None:
                return found
        return super().square(box, resize, mirrored)

    def window(self, resized: tuple[int, int], top: int, left: int, resize: Resize) -> Tensor:
        """The same of the whole image, of which no more is decoded than the window takes."""
        if self._resized_here(resize):
            size = self.height, self.width
            found = jpeg.read_window(
                self.content, self.bands, size, resized, top, left, resize.side
            )
            if found is not None:
                return found
        return super().window(resized, top, left, resize)

    def _resized_here(self, resize: Resize) -> bool:
        bilinear = resize.interpolation == "bilinear" and resize.antialias
        return bilinear and self.bands == self.channels


ImageSource = str | Path | bytes | Content
"""A file, or its content."""


def open_image(
    source: ImageSource | Image.Image | np.ndarray,
    channels: int,
    max_pixels: int = MAX_PIXELS,
    intensity: Intensity = EIGHT_BITS,
) -> ImageFile:
    """The image in a file, or in a file's bytes. Raises UnreadableImage.

    PIL decodes 8-bit grey and colour: JPEG, and most other formats, bit for bit as torchvision.
    EXIF orientation is applied, as in cv2. Alpha is dropped, as in cv2, torchvision
    and PIL's convert. 16-bit values keep their high 8 bits, as in cv2. The first of several
    frames is used. Everything else is read by `pixels.read_pixels`, without loss. Images in
    memory go to `from_image`.
    """
    if isinstance(source, (Image.Image, np.ndarray)):
        return _at_hand(source, channels, max_pixels, intensity)
    name, content = content_of(source)
    if not content:
        raise UnreadableImage(name, "is empty")
    try:
        with _damage_named(name):
            raise_pils_limit(max_pixels)
            if not _in_eight_bits(channels, intensity) or not is_pils(content):
                found = intensity.apply(read_pixels(content, max_pixels), channels)
                return ImageFile(found, name)
            is_jpeg = content.startswith(jpeg.START)
            if is_jpeg and (plain := jpeg.plain_size(content)):
                height, width, bands = plain
            else:
                image = _open_jpeg(content) if is_jpeg else Image.open(io.BytesIO(content))
                height, width, bands = image.height, image.width, len(image.getbands())
                upright_jpeg = image.format == "JPEG" and turn_of(image) is None
                is_jpeg = upright_jpeg and image.mode in MODES.values()
            if width * height > max_pixels:
                raise Image.DecompressionBombError
            if is_jpeg:
                return JpegFile(content, (height, width), bands, channels, name)
            return ImageFile(_to_tensor(image, channels), name)
    except Image.DecompressionBombError as error:
        raise TooManyPixels(
            name,
            f"has more than {max_pixels:,} pixels; if you trust the file, raise data.max_pixels "
            f"(of evaluate and predict: --max-pixels)",
        ) from error


def _open_jpeg(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content), formats=("JPEG",))  # else PIL tries other formats first


def _at_hand(
    image: Image.Image | np.ndarray, channels: int, max_pixels: int, intensity: Intensity
) -> ImageFile:
    try:
        return ImageFile(from_image(image, channels, max_pixels, intensity))
    except UnreadableImage:
        raise
    except UserError as error:
        raise UnreadableImage("its image", str(error)) from error


def _in_eight_bits(channels: int, intensity: Intensity) -> bool:
    """Whether PIL's 8-bit conversion is used, and not the file's own values."""
    return intensity.rule == "8bit" and channels in MODES


def decode(
    source: ImageSource | Image.Image | np.ndarray,
    channels: int,
    max_pixels: int = MAX_PIXELS,
    intensity: Intensity = EIGHT_BITS,
) -> Tensor:
    """The pixels of `open_image`, [C, H, W]. Raises UnreadableImage."""
    return open_image(source, channels, max_pixels, intensity).pixels()


@contextlib.contextmanager
def _damage_named(name: str) -> Iterator[None]:
    """Turns PIL's errors for a corrupt file into an UnreadableImage with that name."""
    try:
        yield
    except Image.DecompressionBombError:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImage(name, "is not an image that PIL can read") from error
    except Exception as error:  # PIL's plugins raise many kinds for corrupt files
        raise UnreadableImage(name, f"cannot be read as an image: {error}") from error


def content_of(source: ImageSource) -> Content:
    """The bytes and their name for messages. Raises UnreadableImage."""
    if isinstance(source, Content):
        return source
    if isinstance(source, bytes):
        return Content("bytes", source)
    return Content(str(source), read_file(Path(source)))


def read_file(file: Path) -> bytes:
    """The bytes of a regular file, as a pipe might never end. Raises UnreadableImage."""
    try:
        if stat.S_ISREG(file.stat().st_mode):
            return file.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UnreadableImage(str(file), f"there is no such file{_with_slashes(file)}") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        why = error.strerror if isinstance(error, OSError) else error
        raise UnreadableImage(str(file), f"cannot be read: {why}") from error
    raise UnreadableImage(str(file), "is a folder" if file.is_dir() else "is not a regular file")


def _with_slashes(file: Path) -> str:
    """A hint for lists written on Windows."""
    other = Path(str(file).replace("\\", "/"))
    return f", but {other} exists: write / in the list" if other.is_file() else ""


def raise_pils_limit(max_pixels: int) -> None:
    """Lets PIL open images of `max_pixels`, in the whole process and for good."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and max_pixels > 2 * limit:  # PIL warns above limit, errors above twice it
        Image.MAX_IMAGE_PIXELS = max_pixels


def from_image(
    image: Image.Image | np.ndarray | ImageSource,
    channels: int,
    max_pixels: int = MAX_PIXELS,
    intensity: Intensity = EIGHT_BITS,
) -> Tensor:
    """Anything `predict` accepts as an image -> [C, H, W], as from `decode`.

    An array is [H, W] or [H, W, C], in RGB order (cv2's is BGR), uint8 unless `intensity` allows
    more. Raises UserError.
    """
    if isinstance(image, (bytes, str, Path, Content)):
        return decode(image, channels, max_pixels, intensity)
    plain = _in_eight_bits(channels, intensity)
    if isinstance(image, np.ndarray):
        if not plain:
            return _from_values(image, channels, max_pixels, intensity)
        image = _from_array(image)
    if not isinstance(image, Image.Image):
        raise UserError(
            f"expected a path, bytes, a PIL image or an array, got {type(image).__name__}"
        )
    try:
        if not plain:
            return intensity.apply(image_pixels(image), channels)
        return _to_tensor(image, channels)
    except (OSError, ValueError, SyntaxError) as error:  # PIL may only decode now
        name = getattr(image, "filename", "") or "PIL image"
        raise UnreadableImage(str(name), f"cannot be read as an image: {error}") from error


def _from_values(array: np.ndarray, channels: int, max_pixels: int, intensity: Intensity) -> Tensor:
    try:
        return intensity.apply(array_pixels(array, max_pixels), channels)
    except ValueError as error:
        raise UserError(f"the array {error}") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"the array has more than {max_pixels:,} pixels") from error


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not fits or not array.size:
        raise UserError(
            f"expected a uint8 array of shape [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], got "
            f"{array.dtype} {list(array.shape)}"
        )
    return Image.fromarray(array)


def _to_tensor(image: Image.Image, channels: int) -> Tensor:
    """uint8 [C, H, W], channels last in memory as in PIL, which resizes fastest."""
    image.load()  # PIL rotates a TIFF when it loads it
    if is_16_bit(image):
        image = upright(image)
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(
            "32-bit pixels have no agreed range; save the file with 8 or 16 bits, or train with "
            "data.intensity=percentile or window"
        )
    return _channels_first(np.array(upright(image).convert(MODES[channels])))


def _channels_first(pixels: np.ndarray) -> Tensor:
    """[H, W] or [H, W, C] -> a [C, H, W] view."""
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)
