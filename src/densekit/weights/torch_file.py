"""torch.save's files, both containers: a zip archive, and what torch before 1.6 wrote.

A file of whole modules is read too: their parameters and buffers, no class of them.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from densekit.config import UserError
from densekit.weights import pickles
from densekit.weights.pickles import Name, Persistent, Record

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
WRAPPERS = ("state_dict", "model")  # keys under which checkpoints keep the weights
DTYPES = {
    "torch.FloatStorage": torch.float32, "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16, "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64, "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16, "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8, "torch.BoolStorage": torch.bool,
}  # fmt: skip

Storages = Callable[[Persistent], Tensor]
"""Finds the values that a reference stands for, one-dimensional."""


def read_zip(path: Path) -> dict[str, Tensor]:
    """The tensors by name of a file that torch.save wrote as a zip archive. Raises UserError."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {info.filename: info for info in archive.infolist()}
            pickled = [name for name in entries if name.endswith("/data.pkl")]
            if len(pickled) != 1:
                raise UserError("a zip archive, but not one that torch.save writes")
            folder = pickled[0].removesuffix("data.pkl")
            if sum(info.file_size for info in archive.infolist()) > path.stat().st_size:
                raise UserError("damaged, or compressed: its parts claim more than the file has")

            def content(name: str) -> bytearray:
                info = entries.get(folder + name)
                if info is None:
                    raise UserError(f"damaged: it has no {name}")
                if info.compress_type != zipfile.ZIP_STORED:
                    raise UserError(f"{name} is compressed, which torch.save does not do")
                return bytearray(archive.read(info))

            if folder + "byteorder" in entries and content("byteorder") != b"little":
                raise UserError("big-endian; save it again on a little-endian machine")
            tree = pickles.load(io.BytesIO(content("data.pkl")))
            return tensors(tree, _cached(lambda key: content(f"data/{key}")))
    except UserError:
        raise
    except (zipfile.BadZipFile, EOFError, RuntimeError, ValueError, struct.error) as error:
        raise UserError(f"damaged: {error}") from error  # zipfile raises all of these


def read_legacy(file: io.BytesIO) -> dict[str, Tensor]:
    """The tensors by name of a file that torch before 1.6 wrote. Raises UserError."""
    stored: list[Persistent] = []
    magic, _version, system = (pickles.load(file) for _ in range(3))
    assert magic == LEGACY_MAGIC
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise UserError("big-endian; save it again on a little-endian machine")
    tree, keys = pickles.load(file, stored), pickles.load(file)
    dtypes = {key: dtype for key, dtype, _ in map(_reference, stored)}
    rest, found, at = file.read(), {}, 0
    for key in keys if isinstance(keys, list) else ():
        if not isinstance(key, str) or key not in dtypes:
            raise UserError("damaged: a storage that nothing refers to")
        size = int.from_bytes(rest[at : at + 8], "little") * dtypes[key].itemsize
        if size > len(rest) - at - 8:
            raise UserError(f"cut short: storage {key} has {len(rest) - at - 8} of {size} bytes")
        found[key] = bytearray(rest[at + 8 : at + 8 + size])
        at += 8 + size
    return tensors(tree, _cached(found.__getitem__))


def to_bytes(tensors: dict[str, Tensor]) -> bytes:
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
                    f"damaged: storage {key} has {len(data)} bytes, and should have "
                    f"{numel} x {dtype.itemsize}"
                )
            read[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return read[key]

    return storage


def _reference(reference: Persistent) -> tuple[str, torch.dtype, int]:
    """The key, type and number of values of ("storage", type, key, location, numel, ...)."""
    match reference.key:
        case ("storage", Name(kind), str(key), _, int(numel), *_) if kind in DTYPES:
            return key, DTYPES[kind], numel
    raise UserError("damaged: a reference that is not to a tensor's storage")


# What is in a file --------------------------------------------------------------------------


def tensors(tree: Any, storage: Storages) -> dict[str, Tensor]:
    """Name -> tensor of a state_dict, wrapped or not, or of a whole module. Raises UserError.

    A module's own class is no tensor and not told: what its names look like decides, see keymaps.
    """
    tree = _mapping(tree)
    for wrapper in WRAPPERS:
        if isinstance(tree, dict) and isinstance(_mapping(tree.get(wrapper)), (dict, Record)):
            tree = _mapping(tree[wrapper])
    if isinstance(tree, Record) and tree.name in pickles.MODULES:
        tree = dict(_walk(tree, "", set()))
    if not isinstance(tree, dict) or not all(map(_is_tensor, tree.values())):
        raise UserError("holds no state_dict, a mapping from names to tensors")
    return {str(name): _tensor(record, storage) for name, record in tree.items()}


def _mapping(node: Any) -> Any:
    """An OrderedDict's record as the dict it stands for; all else as it is."""
    ordered = isinstance(node, Record) and node.name == "collections.OrderedDict"
    return node.items if ordered else node


def _is_tensor(node: Any) -> bool:
    return isinstance(node, Record) and node.name.startswith("torch._utils._rebuild")


def _walk(module: Record, prefix: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """The parameters and buffers of a module's record and of those below it, by dotted name."""
    if id(module) in seen or len(seen) > 10_000:
        raise UserError(f"module {prefix or '(root)'} stands in two places")
    seen.add(id(module))
    state = module.state if isinstance(module.state, dict) else {}
    for kind in ("_parameters", "_buffers"):
        for name, node in _children(state, kind):
            if node is not None:
                yield f"{prefix}{name}", node
    for name, node in _children(state, "_modules"):
        if not isinstance(node, Record) or node.name not in pickles.MODULES:
            raise UserError(f"damaged: {prefix}{name} is no module")
        yield from _walk(node, f"{prefix}{name}.", seen)


def _children(state: dict[str, Any], kind: str) -> list[tuple[Any, Any]]:
    children = _mapping(state.get(kind, {}))
    if not isinstance(children, dict):
        raise UserError(f"damaged: {kind} is no mapping")
    return list(children.items())


def _tensor(record: Record, storage: Storages) -> Tensor:
    """The tensor that a record describes, a view of its storage and never larger than that."""
    if record.name.endswith("_rebuild_parameter"):
        inner = record.args[0] if record.args else None
        if not isinstance(inner, Record) or not _is_tensor(inner) or inner.name == record.name:
            raise UserError("damaged: a parameter without a tensor")
        return _tensor(inner, storage)
    match [_sizes(value) for value in record.args[:4]]:
        case [Persistent() as reference, int(offset), tuple(size), tuple(stride)]:
            values, count = storage(reference), math.prod(size)
            last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=False))
            fits = len(size) == len(stride) and min(offset, *size, *stride, 0) == 0
            if not fits or count > len(values) or (count and last >= len(values)):
                raise UserError("damaged: a tensor larger than what is stored of it")
            stride = tuple(step if n > 1 else 1 for n, step in zip(size, stride, strict=True))
            return values.as_strided(size, stride, offset)
    raise UserError("damaged: a tensor without its shape")


def _sizes(value: Any) -> Any:
    """A shape, stored as a tuple or as torch.Size, as a tuple of ints."""
    if isinstance(value, Record) and value.name == "torch.Size" and len(value.args) == 1:
        value = value.args[0]
    if isinstance(value, tuple) and not all(type(size) is int for size in value):
        raise UserError("damaged: a shape that is not of integers")
    return value
