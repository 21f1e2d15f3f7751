"""Paddle's .pdparams: a pickle of a dict from names to numpy arrays."""

from __future__ import annotations

import contextlib
import math
import pickle
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from densekit.config import UserError
from densekit.weights import pickles
from densekit.weights.layouts import Entries
from densekit.weights.pickles import Record

PADDLE_DTYPES = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1"}
PADDLE_REBUILT = ("_reconstruct", "_frombuffer")  # numpy's functions that make an array
NAMES = "StructuredToParameterName@@"  # Paddle's own names for the parameters, of no use here


def read_paddle(tree: Any, size: int) -> Entries:
    """The arrays in what pickles.load read from a file of `size` bytes. Raises UserError."""
    arrays: dict[str, Tensor] = {}
    others, total = [], 0
    for name, node in pickles.leaves(tree):
        if isinstance(node, Record) and node.name.rpartition(".")[2] in PADDLE_REBUILT:
            array = _array(node)
            total += array.nbytes
            if total > size:  # the same bytes for many arrays, each of which takes memory
                raise UserError("corrupt: arrays larger than what is stored of them")
            arrays[name] = torch.from_numpy(array)
        elif isinstance(node, Record) and node.name.startswith("torch."):
            raise UserError("torch's tensors in a plain pickle; save them with torch.save")
        elif not name.startswith(NAMES):
            others.append(name)
    entries = Entries.of(arrays)
    entries.others.extend(others)
    return entries


def paddle_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """What `paddle.load` reads."""
    return pickle.dumps({name: t.contiguous().numpy() for name, t in tensors.items()}, protocol=4)


def _array(record: Record) -> np.ndarray:
    """The array that a record describes; its bytes must be all there."""
    order: Literal["C", "F"]
    match record.name.rpartition(".")[2], record.args, record.state:
        case "_reconstruct", _, (_, shape, Record() as dtype, bool(fortran), data):
            order = "F" if fortran else "C"
        case "_frombuffer", (data, Record() as dtype, shape, ("C" | "F") as order), _:
            pass
        case _:
            raise UserError("corrupt, or holds something else than arrays")
    kind, data = _dtype(dtype), _content(data)
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise UserError("corrupt: an array without its shape")
    if len(shape) > 4:
        raise UserError(f"holds an array of {len(shape)} dimensions, where weights have 4 at most")
    if math.prod(shape) * kind.itemsize != len(data):
        raise UserError("corrupt: an array of another size than what is stored of it")
    array = np.frombuffer(data, kind).reshape(shape, order=order)
    return array.astype(kind.newbyteorder("="), order="C")


def _dtype(record: Record) -> np.dtype:
    code = record.args[0] if record.name == "numpy.dtype" and record.args else None
    if not isinstance(code, str) or code not in PADDLE_DTYPES:
        raise UserError("holds arrays of a type that no DenseNet's weights have")
    swapped = isinstance(record.state, tuple) and record.state[1:2] == (">",)
    return np.dtype((">" if swapped else "<") + code)


def _content(data: Any) -> bytes | bytearray:
    """An array's bytes, as protocols 3 to 5 or, through text, protocol 2 store them."""
    match data:
        case bytes() | bytearray():
            return data
        case Record("_codecs.encode", (str(text), "latin1")):
            with contextlib.suppress(UnicodeEncodeError):
                return text.encode("latin1")
    raise UserError("corrupt: an array without its values")
