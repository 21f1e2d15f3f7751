"""torch.save's files, both containers: a zip archive, and what torch before 1.6 wrote.

A file of whole modules is read too: their parameters and buffers, no class of them.
"""

from __future__ import annotations

import functools
import io
import math
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from torch import Tensor

from densekit.config import UserError
from densekit.weights import pickles
from densekit.weights.layouts import Entries
from densekit.weights.pickles import Name, Persistent, Record

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
BAD_ZIP = (
    zipfile.BadZipFile, EOFError, RuntimeError, ValueError, OSError, struct.error, zlib.error,
)  # fmt: skip
"""What zipfile raises for corrupt archives."""
TORCH_REBUILT = frozenset(
    ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter", "_rebuild_parameter_with_state")
)
"""The functions of torch._utils that make a tensor of a storage, or a parameter of a tensor."""
TORCH_DTYPES = {
    "torch.FloatStorage": torch.float32, "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16, "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64, "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16, "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8, "torch.BoolStorage": torch.bool,
}  # fmt: skip

Storages = Callable[[Persistent], Tensor]
"""Finds the values that a reference stands for, one-dimensional."""


def read_zip(content: bytes) -> Entries:
    """What a zip archive that torch.save wrote holds. Raises UserError."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
        parts = {info.filename: info for info in archive.infolist()}
        folder = _folder(list(parts))
        if sum(info.file_size for info in parts.values()) > len(content):
            raise UserError("corrupt, or compressed: its parts claim more than the file has")

        def part(name: str) -> bytearray:
            info = parts.get(folder + name)
            if info is None:
                raise UserError(f"corrupt: it has no {name}")
            if info.compress_type != zipfile.ZIP_STORED:
                raise UserError(f"{name} is compressed, which torch.save does not do")
            try:
                return bytearray(archive.read(info))
            except BAD_ZIP as error:
                raise UserError(f"corrupt: {name}: {error}") from error

        if folder + "byteorder" in parts and part("byteorder") != b"little":
            raise UserError("big-endian; save it again on a little-endian machine")
        tree = pickles.load_pickle(io.BytesIO(part("data.pkl")))
        return _entries(tree, _cached(lambda key: part(f"data/{key}")))
    except UserError:
        raise
    except BAD_ZIP as error:
        raise UserError(f"corrupt: {error}") from error


def _folder(names: list[str]) -> str:
    """The one folder of a torch.save archive, by the names of its parts."""
    scripted = [name for name in names if name.endswith(("/constants.pkl", "/archive_format"))]
    if scripted:
        raise UserError(
            "a TorchScript or exported program, not a file of weights. If you trust it, take them "
            'out: torch.save(torch.jit.load(FILE, "cpu").state_dict(), "weights.pth")'
        )
    pickled = [name for name in names if name.endswith("/data.pkl")]
    if len(pickled) != 1:
        raise UserError("a zip archive, but not one that torch.save or Keras writes")
    return pickled[0].removesuffix("data.pkl")


def read_legacy(file: io.BytesIO) -> Entries:
    """What a file that torch before 1.6 wrote holds. Raises UserError."""
    stored: list[Persistent] = []
    magic, _version, system = (pickles.load_pickle(file) for _ in range(3))
    assert magic == LEGACY_MAGIC
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise UserError("big-endian; save it again on a little-endian machine")
    tree, keys = pickles.load_pickle(file, stored), pickles.load_pickle(file)
    dtypes = {key: dtype for key, dtype, _ in map(_reference, stored)}
    rest, found, at = file.read(), {}, 0
    for key in keys if isinstance(keys, list) else ():
        if not isinstance(key, str) or key not in dtypes:
            raise UserError("corrupt: a storage that nothing refers to")
        size = int.from_bytes(rest[at : at + 8], "little") * dtypes[key].itemsize
        if size > len(rest) - at - 8:
            raise UserError(f"truncated: storage {key} has {len(rest) - at - 8} of {size} bytes")
        found[key] = bytearray(rest[at + 8 : at + 8 + size])
        at += 8 + size

    def part(key: str) -> bytearray:
        if key not in found:
            raise UserError(f"corrupt: it has no storage {key}")
        return found[key]

    return _entries(tree, _cached(part))


def torch_bytes(tensors: dict[str, Tensor]) -> bytes:
    """What torch.load reads."""
    file = io.BytesIO()
    torch.save(tensors, file)
    return file.getvalue()


def _cached(content: Callable[[str], bytearray]) -> Storages:
    """`content` gives a key's bytes; each is read once."""
    read: dict[str, Tensor] = {}

    def storage(reference: Persistent) -> Tensor:
        key, dtype, numel = _reference(reference)
        if key not in read:
            data = content(key)
            if len(data) != numel * dtype.itemsize:
                raise UserError(
                    f"corrupt: storage {key} has {len(data)} bytes, and should have "
                    f"{numel} x {dtype.itemsize}"
                )
            read[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return read[key]

    return storage


def _reference(reference: Persistent) -> tuple[str, torch.dtype, int]:
    """The key, type and number of values of ("storage", type, key, location, numel, ...)."""
    match reference.key:
        case ("storage", Name(kind), str(key), _, int(numel), *_) if kind in TORCH_DTYPES:
            return key, TORCH_DTYPES[kind], numel
    raise UserError("corrupt: a reference that is not to a tensor's storage")


# What is in a file --------------------------------------------------------------------------


def _entries(tree: Any, storage: Storages) -> Entries:
    """The tensors of a checkpoint, its state_dicts and whole modules, by their place in it."""
    entries = Entries()
    for name, node in pickles.leaves(tree):
        if _is_tensor(node):
            entries.tensors[name] = functools.partial(_tensor, node, storage)
        else:
            entries.others.append(name)
    return entries


def _is_tensor(node: Any) -> TypeGuard[Record]:
    return isinstance(node, Record) and node.name.rpartition(".")[2] in TORCH_REBUILT


def _tensor(record: Record, storage: Storages) -> Tensor:
    """The tensor that a record describes, a view of its storage and never larger than that."""
    if record.name.rpartition(".")[2].startswith("_rebuild_parameter"):
        inner = record.args[0] if record.args else None
        if not _is_tensor(inner) or inner.name == record.name:
            raise UserError("corrupt: a parameter without a tensor")
        return _tensor(inner, storage)
    match [_sizes(value) for value in record.args[:4]]:
        case [Persistent() as reference, int(offset), tuple(size), tuple(stride)]:
            values, count = storage(reference), math.prod(size)
            last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=False))
            fits = len(size) == len(stride) and min(offset, *size, *stride, 0) == 0
            if not fits or count > len(values) or (count and last >= len(values)):
                raise UserError("corrupt: a tensor larger than what is stored of it")
            stride = tuple(step if n > 1 else 1 for n, step in zip(size, stride, strict=True))
            return values.as_strided(size, stride, offset)
    raise UserError("corrupt: a tensor without its shape")


def _sizes(value: Any) -> Any:
    """A shape, stored as a tuple or as torch.Size, as a tuple of ints."""
    if isinstance(value, Record) and value.name == "torch.Size" and len(value.args) == 1:
        value = value.args[0]
    if isinstance(value, tuple) and not all(type(size) is int for size in value):
        raise UserError("corrupt: a shape that is not of integers")
    return value
