"""inference.cpp, compiled on this machine when it is first needed: see native.py.

A library of its own: those who only predict need not wait for the kernels of training.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import torch

from densekit.native_code import NativeCode, Unavailable
from densekit.ops.lean.kernels import native

PTR, INT = ctypes.c_void_p, ctypes.c_int64
ARGUMENTS = {
    "infer": (PTR, PTR, PTR),
    "pack": (PTR, *[INT] * 4, PTR),
    "packed_bytes": (INT,) * 4,
    "linear": (PTR, INT, INT, PTR, PTR, INT, PTR),
}  # and the number of threads
FLOAT32 = ("linear",)  # whatever the maps are


@functools.cache
def reason() -> str | None:
    """None if it can be used, else why not, in a line. Compiles it if need be."""
    try:
        _library()
    except Unavailable as why:
        return str(why)
    return None


def kernel(name: str, dtype: torch.dtype) -> Callable[..., int]:
    """A function of inference.cpp for maps in that dtype; it takes addresses and numbers."""
    return getattr(_library(), f"{name}_{native.SUFFIX[dtype]}")


@functools.cache
def _library() -> ctypes.CDLL:
    files = (native.FOLDER / "inference.cpp", *native.HEADERS)
    library = NativeCode("inference kernels", files, native.flags()).load()
    for name, types in ARGUMENTS.items():
        for suffix in ("f32",) if name in FLOAT32 else native.SUFFIX.values():
            function = getattr(library, f"{name}_{suffix}")
            function.argtypes = (*types, ctypes.c_int)
            function.restype = INT if name == "packed_bytes" else None
    return library
