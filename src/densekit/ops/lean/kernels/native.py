"""The kernels of plain.py in C++ for CPUs, compiled on this machine when they are first needed.

native.cpp includes nothing of torch and is called with pointers, so a compiler takes six seconds
for it where an extension built on torch's headers takes half a minute, and the result does not
depend on torch's version or ABI. It is kept in the user's cache under a name made of the source,
the compiler, its flags and the CPU's instructions. torch's threads are libgomp's, and so are these.
"""

from __future__ import annotations

import ctypes
import functools
import math
import platform
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from densekit.native_code import NativeCode, Unavailable
from densekit.ops.lean.kernels.plain import DeferredGrad, NormGrads, NormReluGrad, Pool, Size
from densekit.ops.lean.layout import contiguous_weight

FOLDER = Path(__file__).parent
SOURCE, HEADERS = FOLDER / "native.cpp", sorted(FOLDER.glob("*.h"))
FLAGS = (
    "-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp",
    "-fPIC", "-shared", "-Wno-psabi",
)  # fmt: skip
X86_FLAGS = ("-mprefer-vector-width=512",)  # other machines' compilers stop at it
SUFFIX = {torch.float32: "f32", torch.bfloat16: "bf16"}

PTR, INT, REAL = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
ARGUMENTS = {
    "normalisation": (PTR, INT, REAL, PTR, PTR, REAL, PTR, INT),
    "correction": (PTR, PTR, REAL, PTR, INT),
    "norm_relu": (PTR, INT, PTR, PTR, INT, INT),
    "norm_relu_average": (PTR, INT, PTR, PTR, INT, INT, INT, INT),
    "norm_relu_max": (PTR, INT, PTR, PTR, PTR, INT, INT, INT, INT),
    "moments": (PTR, INT, PTR, INT, PTR, INT, INT),
    "norm_relu_conv": (PTR, INT, PTR, PTR, *[INT] * 5, PTR, INT, PTR, INT, INT, INT),
    "norm_relu_conv_backward": (
        *(PTR, INT, PTR, INT, PTR, PTR),
        *(PTR, INT, PTR),
        PTR,
        *[INT] * 5,
        *(PTR, PTR, PTR, INT, PTR),
        *(INT, INT, INT),
    ),
    "grad_sums": (PTR, INT, PTR, PTR, PTR, INT, INT, PTR, INT, INT),
    "norm_relu_grad": (PTR, INT, PTR, PTR, PTR, INT, INT, PTR, PTR, INT, INT),
    "add_line": (PTR, INT, PTR, INT, PTR, PTR, INT, INT),
}  # and the number of threads
VECTORS = ("normalisation", "correction")  # of channels: in float32 whatever the maps are


# Building -----------------------------------------------------------------------------------


@functools.cache
def reason() -> str | None:
    """None if the C++ kernels can be used, else why not, in a line. Compiles them if need be."""
    try:
        _library()
    except Unavailable as why:
        return str(why)
    return None


@functools.cache
def _library() -> ctypes.CDLL:
    library = _code().load()
    for name, types in ARGUMENTS.items():
        suffixes = ("f32",) if name in VECTORS else SUFFIX.values()
        for suffix in suffixes:
            function = getattr(library, f"{name}_{suffix}")
            function.argtypes, function.restype = (*types, ctypes.c_int), None
    return library


def _code() -> NativeCode:
    return NativeCode("kernels", (SOURCE, *HEADERS), flags())


def flags() -> tuple[str, ...]:
    """The compiler's."""
    return (*FLAGS, *X86_FLAGS) if platform.machine() == "x86_64" else FLAGS


# Calling; plain.py says what each computes -----------------------------------------------------


def prepare_weights(weights: Sequence[Tensor], x: Tensor) -> list[Tensor]:
    return [contiguous_weight(weight.float()) for weight in weights]


def normalisation(
    moments: Tensor, count: Tensor, gamma: Tensor, beta: Tensor, eps: float, norm: Tensor
) -> None:
    gamma, beta = gamma.float(), beta.float()
    batch, affine = (_rows(moments), moments.stride(0), count.item()), (_whole(gamma), _whole(beta))
    _call("normalisation", norm, *batch, *affine, eps, _whole(norm), norm.shape[1])


def correction(norm: Tensor, sums: Tensor, count: Tensor, line: Tensor) -> None:
    fresh, sums = torch.empty(line.shape, dtype=line.dtype), sums.contiguous()
    of = (_whole(norm), _whole(sums), count.item(), _whole(fresh), norm.shape[1])
    _call("correction", norm, *of)
    line += fresh


def _finish_grads(norm: Tensor, grads: NormGrads, sums: Tensor) -> None:
    grads.sums.copy_(sums)
    grads.gamma.copy_(sums[1] * norm[3])
    grads.beta.copy_(sums[0])
    if grads.line is not None:
        correction(norm, sums, grads.values, grads.line)


def norm_relu(x: Tensor, norm: Tensor, out: Tensor) -> None:
    _call("norm_relu", x, _rows(x), x.stride(0), _whole(norm), _whole(out), *x.shape)


def norm_relu_pool(x: Tensor, norm: Tensor, out: Tensor, pool: Pool) -> None:
    h, w, taken = pool
    maps = (len(x) // (h * w), h, w, x.shape[1])
    pixels = (_rows(x), x.stride(0), _whole(norm), _whole(out))
    if taken is None:
        _call("norm_relu_average", x, *pixels, *maps)
    else:
        _call("norm_relu_max", x, *pixels, _whole(taken), *maps)


def moments(z: Tensor, found: Tensor, copy: Tensor | None = None) -> None:
    into = (None, 0) if copy is None else (_rows(copy), copy.stride(0))
    fresh = torch.empty(found.shape, dtype=found.dtype)
    _call("moments", z, _rows(z), z.stride(0), *into, _whole(fresh), *z.shape)
    found.copy_(fresh)


def norm_relu_conv(
    x: Tensor, norm: Tensor, weight: Tensor, z: Tensor, size: Size, found: Tensor | None = None
) -> None:
    (weight,) = prepare_weights([weight], x)
    fresh = None if found is None else torch.empty(found.shape, dtype=found.dtype)
    pixels = (_rows(x), x.stride(0), _whole(norm), *_weight_layout(weight), _rows(z), z.stride(0))
    _call("norm_relu_conv", x, *pixels, _optional(fresh), *_maps(x, size))
    if found is not None and fresh is not None:
        found.copy_(fresh)


def norm_relu_conv_backward(
    behind: DeferredGrad | NormReluGrad,
    x: Tensor,
    norm: Tensor,
    weight: Tensor,
    size: Size,
    grads: NormGrads | None,
    grad: Tensor | None,
    d: Tensor | None = None,
    to: Tensor | None = None,
) -> None:
    (weight,) = prepare_weights([weight], x)
    assert grad is None or (grad.stride() == weight.stride() and grad.dtype == weight.dtype)
    assert d is None or (to is not None and d.stride(0) == to.stride(0))
    if isinstance(behind, DeferredGrad):
        first, second, norm_y, line = behind.x, behind.d, None, _with_mean(behind)
    else:
        first, second, norm_y, line = behind.y, behind.da, behind.norm, behind.line.float()
        assert first.is_contiguous()
        assert second.is_contiguous()
    dz = (_rows(first), first.stride(0), _rows(second), second.stride(0), _optional(norm_y))
    pixels = (_rows(x), x.stride(0), _whole(norm), *_weight_layout(weight))
    into = (_optional(d), _optional(to), 0 if to is None else to.stride(0))
    sums = None if grads is None else norm.new_zeros(grads.sums.shape, dtype=torch.float64)
    found = (_optional(sums), *into, None if grad is None else grad.zero_().data_ptr())
    _call("norm_relu_conv_backward", x, *dz, _whole(line), *pixels, *found, *_maps(x, size))
    if grads is not None and sums is not None:
        _finish_grads(norm, grads, sums)


def grad_sums(
    x: Tensor, norm: Tensor, da: Tensor, grads: NormGrads, pool: Pool | None = None
) -> None:
    sums = norm.new_zeros(grads.sums.shape, dtype=torch.float64)
    pixels = (_rows(x), x.stride(0), _whole(norm), _whole(da), *_pool(pool))
    _call("grad_sums", x, *pixels, _whole(sums), *x.shape)
    _finish_grads(norm, grads, sums)


def norm_relu_grad(
    x: Tensor, norm: Tensor, da: Tensor, line: Tensor, out: Tensor, pool: Pool | None = None
) -> None:
    pixels = (_rows(x), x.stride(0), _whole(norm), _whole(da), *_pool(pool))
    line = line.float()
    _call("norm_relu_grad", x, *pixels, _whole(line), _whole(out), *x.shape)


def add_line(behind: DeferredGrad, out: Tensor) -> None:
    d, x, line = behind.d, behind.x, _with_mean(behind)
    pixels = (_rows(d), d.stride(0), _rows(x), x.stride(0), _whole(line), _whole(out))
    _call("add_line", x, *pixels, *x.shape)


def _with_mean(behind: DeferredGrad) -> Tensor:
    """[3, c]: mean, shift, slope."""
    return torch.cat([behind.mean.unsqueeze(0), behind.line]).float()


def _call(name: str, x: Tensor, *arguments: float | None) -> None:
    function = getattr(_library(), f"{name}_{SUFFIX[x.dtype]}")
    function(*arguments, torch.get_num_threads())


def _rows(x: Tensor) -> int:
    assert x.stride(1) == 1 or x.shape[1] == 1
    return x.data_ptr()


def _optional(x: Tensor | None) -> int | None:
    return None if x is None else _rows(x)


def _weight_layout(weight: Tensor) -> tuple[int, ...]:
    """Where it is, k, c, taps, and how far apart two of c and two taps are."""
    k, c, *window = weight.shape
    return weight.data_ptr(), k, c, math.prod(window), weight.stride(1), weight.stride(3)


def _maps(x: Tensor, size: Size) -> tuple[int, int, int]:
    return len(x) // math.prod(size), *size


def _whole(x: Tensor) -> int:
    assert x.is_contiguous()
    return x.data_ptr()


def _pool(pool: Pool | None) -> tuple[int | None, int, int]:
    if pool is None:
        return None, 0, 0
    return None if pool.taken is None else _whole(pool.taken), pool.h, pool.w
