"""The values in an image file as they stand there: 8 bits or 16, any number of channels.

PNG, JPEG and whatever else PIL reads; `.npy`; TIFF of several channels (by tifffile); DICOM (by
pydicom). What cannot be read without loss is refused. H height, W width, C channels.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from densekit.config import needs_extra

SUFFIXES = frozenset((".npy", ".dcm", ".dicom"))
"""Of image files that PIL does not read."""
NUMPY, DICOM, DICOM_AT = b"\x93NUMPY", b"DICM", 128
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
PNG, PNG_DEPTH, PNG_COLOUR = b"\x89PNG\r\n\x1a\n", 24, 25  # bytes of the header
MINISWHITE = 0  # of TIFF's PhotometricInterpretation
TURNS = {  # EXIF orientation -> what makes the image upright
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
    """What a file holds."""

    values: np.ndarray
    """[H, W, C], of any dtype of numbers."""
    span: tuple[float, float] | None = None
    """The smallest and largest value that the format has; None: it has none (floats)."""
    window: tuple[float, float] | None = None
    """The values that the file itself wants to be black and white (DICOM)."""
    inverted: bool = False
    """The smallest value is white (MONOCHROME1, MINISWHITE)."""
    alpha: bool = False
    """The last channel is opacity."""


def is_pils(data: bytes) -> bool:
    """Whether PIL is what reads the file, if anything does."""
    return not data.startswith(NUMPY) and data[DICOM_AT : DICOM_AT + len(DICOM)] != DICOM


def read_pixels(data: bytes, max_pixels: int) -> Pixels:
    """The values in a file's bytes.

    Raises ValueError for what cannot be read without loss, PIL's DecompressionBombError for more
    than `max_pixels`, and what numpy, PIL and tifffile raise for damaged files.
    """
    if data.startswith(NUMPY):
        return array_pixels(np.load(io.BytesIO(data), allow_pickle=False), max_pixels)
    if not is_pils(data):
        from densekit.data.dicom import read_dicom

        return read_dicom(data, max_pixels)
    if data.startswith(PNG) and data[PNG_DEPTH] == 16 and data[PNG_COLOUR] != 0:
        raise ValueError(
            "is a PNG of 16-bit colour or opacity, of which PIL keeps 8 bits; save it as TIFF or "
            ".npy, or as grey"
        )
    if data.startswith(TIFF) and not is_plain_tiff(data):
        return _read_tiff(data, max_pixels)
    with Image.open(io.BytesIO(data)) as image:
        check_size(image.height, image.width, max_pixels)
        return image_pixels(image)


def check_size(height: int, width: int, max_pixels: int) -> None:
    """Raises PIL's DecompressionBombError."""
    if height * width > max_pixels:
        raise Image.DecompressionBombError


def array_pixels(values: np.ndarray, max_pixels: int) -> Pixels:
    """Of an array [H, W] or [H, W, C]. Raises ValueError for another one."""
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
    """Of whole numbers of up to 16 bits; wider ones, and floats, have no agreed range."""
    if dtype.kind not in "ui" or dtype.itemsize > 2:
        return None
    limits = np.iinfo(dtype)
    return float(limits.min), float(limits.max)


# PIL ----------------------------------------------------------------------------------------


def image_pixels(image: Image.Image) -> Pixels:
    """Of a PIL image, upright."""
    image.load()  # a TIFF is turned upright by its loader
    white = is_16_bit(image) and getattr(image, "tag_v2", {}).get(262) == MINISWHITE
    if image.mode in ("1", "YCbCr", "P", "PA"):
        image = image.convert("L" if image.mode == "1" else _expanded(image))
    image = upright(image)
    values = np.asarray(image)
    if is_16_bit(image):
        values = values.astype(np.uint16)
    elif image.mode not in ("L", "LA", "RGB", "RGBA", "CMYK", "I", "F"):
        raise ValueError(f"has pixels of PIL's mode {image.mode}, which has no numbers to scale")
    values = values if values.ndim == 3 else values[..., None]
    return Pixels(
        values, full_span(values.dtype), inverted=white, alpha=image.mode in ("LA", "RGBA")
    )


def _expanded(image: Image.Image) -> str:
    """The mode of a palette's colours."""
    return "RGBA" if image.mode == "PA" or "transparency" in image.info else "RGB"


def is_16_bit(image: Image.Image) -> bool:
    """Whether its pixels are single 16-bit numbers."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF says."""
    turn = turn_of(image)
    return image if turn is None else image.transpose(turn)


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """What makes the image upright; None where it is."""
    try:
        return TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (SyntaxError, ValueError, KeyError, TypeError, struct.error):
        return None  # EXIF is broken: viewers and cv2 show such an image unturned


# TIFF ---------------------------------------------------------------------------------------


def is_plain_tiff(data: bytes) -> bool:
    """Whether PIL keeps every bit of a TIFF: one page, one channel or 8 bits."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            bits = getattr(image, "tag_v2", {}).get(258, (1,))
            if getattr(image, "n_frames", 1) > 1 or (image.mode == "I" and bits[0] == 16):
                return False  # of signed numbers PIL makes 32 bits
            return len(bits) == 1 or bits[0] == 8
    except UnidentifiedImageError:
        return False  # another number of channels


def _read_tiff(data: bytes, max_pixels: int) -> Pixels:
    """Several channels, as samples of a pixel or as pages."""
    with needs_extra("tiff", "is TIFF of several channels or pages, which"):
        import tifffile
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        series, page = file.series[0], file.pages[0]
        check_size(page.imagelength, page.imagewidth, max_pixels)
        if series.size > max_pixels * max(1, series.size // page.size):
            raise Image.DecompressionBombError
        if page.tags.valueof(274, 1) != 1:
            raise ValueError("is turned by its orientation tag; save it upright")
        axes, values = series.axes, series.asarray()
        white = page.photometric == MINISWHITE
    if axes not in ("YX", "YXS") and not (len(axes) == 3 and axes.endswith("YX")):
        raise ValueError(
            f"is a TIFF of axes {axes}; expected one image of several channels (YXS, CYX or pages)"
        )
    if len(axes) == 3 and axes != "YXS":
        values = np.moveaxis(values, 0, -1)
    found = array_pixels(values, max_pixels)
    return Pixels(found.values, found.span, inverted=white)


# Channels -----------------------------------------------------------------------------------


def fit_channels(pixels: Pixels, channels: int) -> np.ndarray:
    """The values with so many channels, [H, W, channels], nothing lost.

    Grey is repeated for colour; three channels that are alike are one; opacity that is full is
    left out. Raises ValueError for any other difference.
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
        f"has {values.shape[2]} {what}, and the network takes {channels} "
        f"(data.channels={channels}); save the file with as many, or train with "
        f"data.channels={values.shape[2]} and model.in_channels={values.shape[2]}"
    )
