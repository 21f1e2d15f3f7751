"""Images as `densekit data pack` stores them: with a suffix, and optionally shrunk."""

from __future__ import annotations

import io
import os

from PIL import Image

from densekit.data.config import MAX_PIXELS
from densekit.data.decode import UnreadableImage, decode
from densekit.data.folders import image_suffixes
from densekit.data.listing import Content

_NO_IMAGE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


def suffix_of(found: Content) -> str:
    """The file's suffix in lower case, else that of its format. Raises UnreadableImage."""
    own = os.path.splitext(found.name)[1].lower()  # noqa: PTH122 (a million of them)
    if own in image_suffixes():
        return own
    try:
        with Image.open(io.BytesIO(found.content)) as image:
            return f".{str(image.format).lower()}"
    except _NO_IMAGE as error:
        raise UnreadableImage(found.name, f"is not an image that PIL can read: {error}") from error


def shrunk(found: Content, side: int, quality: int) -> bytes | None:
    """The image as JPEG with a short side of `side` pixels; None if it is no larger.

    Rotated upright, without EXIF data. Raises UnreadableImage.
    """
    try:
        with Image.open(io.BytesIO(found.content)) as header:
            size, mode = header.size, header.mode
    except _NO_IMAGE as error:
        raise UnreadableImage(found.name, f"cannot be shrunk by PIL: {error}") from error
    if min(size) <= side:
        return None
    if mode.startswith(("I", "F")):
        raise UnreadableImage(found.name, "has more than JPEG's 8 bits; leave out --resize")
    channels = 1 if mode in ("1", "L") else 3
    pixels = decode(found, channels, MAX_PIXELS).permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    scale = side / min(image.size)
    width, height = (max(side, round(scale * length)) for length in image.size)
    out = io.BytesIO()
    small = image.resize((width, height), Image.Resampling.LANCZOS)
    small.save(out, "JPEG", quality=quality)
    return out.getvalue()
