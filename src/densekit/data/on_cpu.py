"""What becomes of a whole batch on a CPU, in C++: crops of decoded images, and normalisation.

batch.cpp is compiled once for a machine. Where that cannot be, torch computes the same bits: crops
one by one, and normalisation in passes over the batch, into channels last many times as slowly.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from densekit.native_code import NativeCode, Unavailable

BATCH_CODE = NativeCode(
    "batch kernels",
    (Path(__file__).with_name("batch.cpp"),),
    ("-std=c++17", "-O3", "-march=native", "-ffp-contract=off", "-fopenmp", "-fPIC", "-shared"),
)
PTR, INDEX, FLAG = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
BATCH_ARGUMENTS = {
    "copy_crops": (PTR, PTR, INDEX, PTR, INDEX, INDEX),
    "normalize": (PTR, *[INDEX] * 3, *[PTR] * 3, *[INDEX] * 3, FLAG, FLAG),
}


class Crop(NamedTuple):
    """A square of a decoded image, of which the pixels are copied with those of its batch."""

    start: int
    """Of the image, [height, width, C], in elements."""
    height: int
    width: int
    top: int
    """Of the square's first row in the image; it may lie beyond its edges, where zeros are."""
    left: int
    mirrored: bool


def copies_crops() -> bool:
    """Whether there is a compiler for it. Compiles it if need be."""
    return bool(_functions("copy_crops"))


def copy_crops(pixels: Tensor, crops: Sequence[tuple[int, Crop]], out: Tensor) -> None:
    """Each into its row of `out` [N, C, S, S], from the pixels of all images, uint8 or float32."""
    table = np.array([(row, *crop) for row, crop in crops], np.int64)
    function = _functions("copy_crops")[pixels.dtype]
    assert (out.is_contiguous(), out.dtype) == (True, pixels.dtype)
    function(
        pixels.data_ptr(), table.ctypes.data, len(table), out.data_ptr(), out.shape[1], out.shape[2]
    )


def normalize_batch(
    x: Tensor, mean: Tensor, std: Tensor, memory_format: torch.memory_format, out: Tensor | None
) -> Tensor | None:
    """uint8 or float32 [N, C, H, W] -> (x / 255 - mean) / std, of floats (x - mean) / std, float32;
    mean and std are [1, C, 1, 1], or one value each. Into `out`, if that is given.

    None where torch has to compute it.
    """
    function = _functions("normalize").get(x.dtype)
    fits = out is None or (out.shape == x.shape and out.dtype == torch.float32 and _is_dense(out))
    if function is None or x.requires_grad or not (fits and _is_dense(x) and x.numel()):
        return None
    if out is None:  # in strides that torch would give, since convolutions look at them
        asked = memory_format != torch.preserve_format
        if asked and not x.is_contiguous(memory_format=memory_format):
            out = torch.empty(x.shape, memory_format=memory_format)
        else:
            out = torch.empty_like(x, dtype=torch.float32)
    images, channels, height, width = x.shape
    mean, std = (v.flatten().expand(channels).contiguous() for v in (mean, std))
    pixels = x.flatten(2)
    function(
        pixels.data_ptr(), *pixels.stride(), mean.data_ptr(), std.data_ptr(), out.data_ptr(),
        images, channels, height * width, not out.is_contiguous(), torch.get_num_threads(),
    )  # fmt: skip
    return out


def _is_dense(x: Tensor) -> bool:
    return x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)


@functools.cache
def _functions(name: str) -> dict[torch.dtype, Any]:
    """By the dtype of the pixels; none where there is no compiler."""
    try:
        code = BATCH_CODE.load()
    except Unavailable:
        return {}
    found = {}
    for dtype, suffix in ((torch.uint8, "u8"), (torch.float32, "f32")):
        found[dtype] = getattr(code, f"{name}_{suffix}")
        found[dtype].argtypes, found[dtype].restype = BATCH_ARGUMENTS[name], None
    return found
