"""The values in an image file, unconverted: 8 or 16 bits, any number of channels.

PNG, JPEG and whatever else PIL reads; `.npy`; TIFF of several channels (by tifffile); DICOM (by
pydicom). A file that cannot be read without loss is refused. H height, W width, C channels.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from densekit.config import needs_extra

SUFFIXES = frozenset((".npy", ".dcm", ".dicom"))
"""Suffixes of image files that PIL does not read."""
NUMPY, DICOM, DICOM_AT = b"\x93NUMPY", b"DICM", 128
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
PNG, PNG_DEPTH, PNG_COLOUR = b"\x89PNG\r\n\x1a\n", 24, 25  # offsets in the header
MINISWHITE = 0  # a value of TIFF's PhotometricInterpretation
TURNS = {  # EXIF orientation -> what rotates the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Pixels:
    """The content of an image file."""

    values: np.ndarray
    """[H, W, C], of any numeric dtype."""
    span: tuple[float, float] | None = None
    """The smallest and largest value of the format; None for floats."""
    window: tuple[float, float] | None = None
    """The values that the file itself shows as black and white (DICOM)."""
    inverted: bool = False
    """The smallest value is white (MONOCHROME1, MINISWHITE)."""
    alpha: bool = False
    """The last channel is opacity."""


def is_pils(data: bytes) -> bool:
    """Whether the file is left to PIL."""
    return not data.startswith(NUMPY) and data[DICOM_AT : DICOM_AT + len(DICOM)] != DICOM


def read_pixels(data: bytes, max_pixels: int) -> Pixels:
    """The values in a file's bytes.

    Raises ValueError if it cannot be read without loss, PIL's DecompressionBombError above
    `max_pixels`, and numpy's, PIL's and tifffile's errors for corrupt files.
    """
    if data.startswith(NUMPY):
        return array_pixels(np.load(io.BytesIO(data), allow_pickle=False), max_pixels)
    if not is_pils(data):
        from densekit.data.dicom import read_dicom

        return read_dicom(data, max_pixels)
    if data.startswith(PNG) and data[PNG_DEPTH] == 16 and data[PNG_COLOUR] != 0:
        raise ValueError(
            "is a PNG with 16-bit colour or opacity, of which PIL keeps 8 bits; save it as TIFF, "
            ".npy or grey PNG"
        )
    if data.startswith(TIFF) and not is_plain_tiff(data):
        return _read_tiff(data, max_pixels)
    with Image.open(io.BytesIO(data)) as image:
        check_size(image.height, image.width, max_pixels)
        return image_pixels(image)


def check_size(height: int, width: int, max_pixels: int) -> None:
    """Raises PIL's DecompressionBombError above `max_pixels`."""
    if height * width > max_pixels:
        raise Image.DecompressionBombError


def array_pixels(values: np.ndarray, max_pixels: int) -> Pixels:
    """From an array [H, W] or [H, W, C]. Raises ValueError for any other."""
    if values.ndim not in (2, 3) or not values.size:
        raise ValueError(f"is an array of shape {list(values.shape)}, expected [H, W] or [H, W, C]")
    if values.dtype.kind not in "uif":
        raise ValueError(f"is an array of {values.dtype}, expected whole numbers or floats")
    height, width = values.shape[:2]
    check_size(height, width, max_pixels)
    values = values if values.ndim == 3 else values[..., None]
    native = values.astype(values.dtype.newbyteorder("="), copy=False)
    return Pixels(native, full_span(native.dtype))


def full_span(dtype: np.dtype) -> tuple[float, float] | None:
    """The range of integers of up to 16 bits; None for wider ones and floats."""
    if dtype.kind not in "ui" or dtype.itemsize > 2:
        return None
    limits = np.iinfo(dtype)
    return float(limits.min), float(limits.max)


# PIL ----------------------------------------------------------------------------------------


def image_pixels(image: Image.Image) -> Pixels:
    """From a PIL image, rotated upright."""
    image.load()  # PIL rotates a TIFF when it loads it
    white = is_16_bit(image) and getattr(image, "tag_v2", {}).get(262) == MINISWHITE
    if image.mode in ("1", "YCbCr", "P", "PA"):
        image = image.convert("L" if image.mode == "1" else _expanded(image))
    image = upright(image)
    values = np.asarray(image)
    if is_16_bit(image):
        values = values.astype(np.uint16)
    elif image.mode not in ("L", "LA", "RGB", "RGBA", "CMYK", "I", "F"):
        raise ValueError(f"has pixels of PIL's mode {image.mode}, which has no values to scale")
    values = values if values.ndim == 3 else values[..., None]
    return Pixels(
        values, full_span(values.dtype), inverted=white, alpha=image.mode in ("LA", "RGBA")
    )


def _expanded(image: Image.Image) -> str:
    """The mode of an image's colours once its palette is applied."""
    return "RGBA" if image.mode == "PA" or "transparency" in image.info else "RGB"


def is_16_bit(image: Image.Image) -> bool:
    """Whether it is 16-bit grey."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def upright(image: Image.Image) -> Image.Image:
    """The image rotated by its EXIF orientation."""
    turn = turn_of(image)
    return image if turn is None else image.transpose(turn)


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """The operation that rotates the image upright; None if it is."""
    try:
        return TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (SyntaxError, ValueError, KeyError, TypeError, struct.error):
        return None  # EXIF is broken: viewers and cv2 show such an image unrotated


# TIFF ---------------------------------------------------------------------------------------


def is_plain_tiff(data: bytes) -> bool:
    """Whether PIL keeps every bit of a TIFF: one page, one channel or 8 bits."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            bits = getattr(image, "tag_v2", {}).get(258, (1,))
            if getattr(image, "n_frames", 1) > 1 or (image.mode == "I" and bits[0] == 16):
                return False  # PIL widens signed values to 32 bits
            return len(bits) == 1 or bits[0] == 8
    except UnidentifiedImageError:
        return False  # the pages or samples differ


def _read_tiff(data: bytes, max_pixels: int) -> Pixels:
    """Several channels, stored as samples or as pages."""
    with needs_extra("tiff", "is a TIFF of several channels or pages, which"):
        import tifffile
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        series, page = file.series[0], file.pages[0]
        check_size(page.imagelength, page.imagewidth, max_pixels)
        if series.size > max_pixels * max(1, series.size // page.size):
            raise Image.DecompressionBombError
        if page.tags.valueof(274, 1) != 1:
            raise ValueError("is rotated by its orientation tag; save it upright")
        axes, values = series.axes, series.asarray()
        white = page.photometric == MINISWHITE
    if axes not in ("YX", "YXS") and not (len(axes) == 3 and axes.endswith("YX")):
        raise ValueError(
            f"is a TIFF with axes {axes}; expected one image of several channels (YXS, CYX, pages)"
        )
    if len(axes) == 3 and axes != "YXS":
        values = np.moveaxis(values, 0, -1)
    found = array_pixels(values, max_pixels)
    return Pixels(found.values, found.span, inverted=white)


# Channels -----------------------------------------------------------------------------------


def fit_channels(pixels: Pixels, channels: int) -> np.ndarray:
    """The values as [H, W, channels], without loss.

    Grey is repeated for colour; three equal channels become one; full opacity is dropped. Raises
    ValueError for any other difference.
    """
    values = pixels.values
    if values.shape[2] == channels:
        return values
    if pixels.alpha and (values[..., -1] == np.iinfo(values.dtype).max).all():
        values = values[..., :-1]
    if values.shape[2] == channels:
        return values
    if (values.shape[2], channels) == (1, 3):
        return np.repeat(values, 3, axis=2)
    if (values.shape[2], channels) == (3, 1) and (values == values[..., :1]).all():
        return values[..., :1]
    what = "channel" if values.shape[2] == 1 else "channels that differ"
    raise ValueError(
        f"has {values.shape[2]} {what}, but the network takes {channels} "
        f"(data.channels={channels}); save the file with as many, or train with "
        f"data.channels={values.shape[2]} and model.in_channels={values.shape[2]}"
    )
