"""JPEG files decoded by Pillow's own libjpeg, but only the rectangle that is asked for.

Pixels are Pillow's to the bit, since the library is; it is called from C++ (jpeg.cpp), which is
compiled once for a machine. Where that cannot be, or a file is not plain JPEG, Pillow decodes.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import numpy as np
import PIL.Image  # which loads its libjpeg

from densekit.native_code import NativeCode, Unavailable

CODE = NativeCode(
    "JPEG reader",
    (Path(__file__).with_name("jpeg.cpp"),),
    ("-std=c++17", "-O2", "-fPIC", "-shared", "-ldl"),
)
START, END = b"\xff\xd8\xff", b"\xff\xd9"  # of a whole file
PTR, SIZE, UINT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint


def read_rectangle(
    file: bytes, channels: int, top: int, left: int, height: int, width: int
) -> np.ndarray | None:
    """Part of a grey or colour JPEG file -> uint8 [height, width, channels], channels 1 or 3.

    None where Pillow has to decode it: there is no native reader, or the file may be damaged.
    """
    reader = _reader()
    if reader is None or not file.endswith(END):
        return None
    pixels = np.empty((height, width, channels), np.uint8)
    done = reader(file, len(file), channels, top, left, height, width, pixels.ctypes.data)
    return pixels if done else None


@functools.cache
def why_no_reader() -> str | None:
    """None if there is a native reader, else why not, in a line. Compiles it if need be."""
    return None if _reader() else _load()[1]


def _reader() -> ctypes._NamedFuncPointer | None:
    return _load()[0]


@functools.cache
def _load() -> tuple[ctypes._NamedFuncPointer | None, str]:
    """The function of jpeg.cpp; or none, and why."""
    found = _pillows_libraries()
    if not found:
        return None, "Pillow's libjpeg is no library of its own here"
    try:
        code = CODE.load()
    except Unavailable as why:
        return None, str(why)
    code.use_library.argtypes = (ctypes.c_char_p,)
    if not any(code.use_library(str(path).encode()) for path in found):
        return None, f"{found[0]} is not libjpeg 6.2 with turbo's functions"
    code.read_rectangle.argtypes = (ctypes.c_char_p, SIZE, ctypes.c_int, *[UINT] * 4, PTR)
    return code.read_rectangle, ""


def _pillows_libraries() -> list[Path]:
    """The libjpegs that this process has loaded, Pillow's own first (Linux)."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return []
    mapped = {line.split(maxsplit=5)[-1] for line in maps.read_text().splitlines()}
    found = sorted(Path(path) for path in mapped if Path(path).name.startswith("libjpeg"))
    own = Path(PIL.__file__).parent.parent
    return sorted(found, key=lambda path: own not in path.parents or "pillow" not in str(path))
