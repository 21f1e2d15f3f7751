"""Decodes only the needed rectangle of a JPEG file, with Pillow's own libjpeg.

Pixels equal Pillow's bit for bit, since the library is the same; it is called from C++ (jpeg.cpp),
compiled once per machine. If that fails, or a file is not plain JPEG, Pillow decodes.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image  # loads its libjpeg
import torch

from densekit.native_code import NativeCode, Unavailable

CODE = NativeCode(
    "JPEG reader",
    (Path(__file__).with_name("jpeg.cpp"), Path(__file__).with_name("resize.h")),
    ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-ldl"),
)
START, END = b"\xff\xd8\xff", b"\xff\xd9"  # a complete file's first and last bytes
FRAMES = (0xC0, 0xC1, 0xC2)  # frames with Huffman coding
# Huffman and quantization tables, restarts, JFIF, Photoshop, Adobe, comments.
UNTURNED = (0xC4, 0xDB, 0xDD, 0xE0, 0xED, 0xEE, 0xFE)
APP2, PROFILE = 0xE2, b"ICC_PROFILE\0"
PTR, SIZE, UINT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint


def read_rectangle(
    file: bytes, channels: int, top: int, left: int, height: int, width: int
) -> np.ndarray | None:
    """Part of a grey or colour JPEG file -> uint8 [height, width, channels], channels 1 or 3.

    None if Pillow has to decode it: there is no native reader, or the file may be corrupt.
    """
    code = _code()
    if code is None or not file.endswith(END):
        return None
    pixels = np.empty((height, width, channels), np.uint8)
    into = pixels.ctypes.data
    done = code.read_rectangle(file, len(file), channels, top, left, height, width, into)
    return pixels if done else None


def read_square(
    file: bytes, channels: int, top: int, left: int, height: int, width: int, scale: int, side: int,
    mirrored: bool = False,
) -> torch.Tensor | None:  # fmt: skip
    """The same part, resized -> uint8 [channels, side, side]: bilinear, antialiased, bit for bit as
    torch does it; optionally mirrored. With a `scale` of 2, 4 or 8 the image is first decoded at
    1/scale of its size, which changes pixels.
    None if `read_rectangle` would return None.
    """
    code = _code()
    if code is None or not file.endswith(END):
        return None
    pixels = torch.empty((channels, side, side), dtype=torch.uint8)
    box, into = (top, left, height, width), pixels.data_ptr()
    done = code.read_square(file, len(file), channels, *box, scale, side, mirrored, into)
    return pixels if done else None


def read_window(
    file: bytes, channels: int, size: tuple[int, int], resized: tuple[int, int], top: int,
    left: int, side: int,
) -> torch.Tensor | None:  # fmt: skip
    """A JPEG file of `size`, height and width, `resized` -> its square of `side` pixels at
    (top, left), uint8 [channels, side, side]: as `read_square`, torch's to the bit, of which only
    what the square takes is decoded.

    None where `read_rectangle` is, and for damage in any row.
    """
    code = _code()
    if code is None or not file.endswith(END):
        return None
    pixels = torch.empty((channels, side, side), dtype=torch.uint8)
    window, into = (*size, *resized, top, left, side), pixels.data_ptr()
    return pixels if code.read_window(file, len(file), channels, *window, into) else None


def plain_size(file: bytes) -> tuple[int, int, int] | None:
    """Height, width and channels from a JPEG file's header; None if Pillow has to read it: not 8
    bits, neither grey nor three colours, EXIF (which may rotate it), or several pictures.
    """
    at = 2
    while file[at : at + 1] == b"\xff" and at + 9 < len(file):
        marker, length = file[at + 1], int.from_bytes(file[at + 2 : at + 4], "big")
        if marker in FRAMES:
            bits, *sides, channels = struct.unpack_from(">BHHB", file, at + 4)
            plain = bits == 8 and min(sides) > 0 and channels in (1, 3)
            return (*sides, channels) if plain else None
        is_profile = marker == APP2 and file.startswith(PROFILE, at + 4)
        if marker not in UNTURNED and not is_profile:
            return None
        at += 2 + length
    return None


@functools.cache
def why_no_reader() -> str | None:
    """Why there is no native reader, in a line; None if there is. Compiles it if need be."""
    return None if _code() else _load()[1]


def _code() -> ctypes.CDLL | None:
    return _load()[0]


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    """The compiled jpeg.cpp, or None and why."""
    found = _pillows_libraries()
    if not found:
        return None, "Pillow's libjpeg is not a shared library here"
    try:
        code = CODE.load()
    except Unavailable as why:
        return None, str(why)
    code.use_library.argtypes = (ctypes.c_char_p,)
    if not any(code.use_library(str(path).encode()) for path in found):
        return None, f"{found[0]} is not libjpeg-turbo with the ABI of 6.2"
    part: list[Any] = [ctypes.c_char_p, SIZE, ctypes.c_int, *[UINT] * 4]
    code.read_rectangle.argtypes = [*part, PTR]
    code.read_square.argtypes = [*part, UINT, ctypes.c_int, ctypes.c_int, PTR]
    code.read_window.argtypes = [*part[:3], *[ctypes.c_int] * 7, PTR]
    return code, ""


def _pillows_libraries() -> list[Path]:
    """The libjpegs that this process has loaded, Pillow's own first (Linux)."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return []
    mapped = {line.split(maxsplit=5)[-1] for line in maps.read_text().splitlines()}
    found = sorted(Path(path) for path in mapped if Path(path).name.startswith("libjpeg"))
    own = Path(PIL.__file__).parent.parent
    return sorted(found, key=lambda path: own not in path.parents or "pillow" not in str(path))
