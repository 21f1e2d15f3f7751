"""Keras' files: .h5 of layers by name, .weights.h5 of layers by their order, .keras around one."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from densekit.config import UserError, needs_extra
from densekit.weights.layouts import Entries
from densekit.weights.torch_file import BAD_ZIP

WEIGHTS = "model.weights.h5"  # in a .keras archive
VARIABLES = {
    "conv2d": ("kernel",),
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "dense": ("kernel", "bias"),
}  # in the order of .weights.h5


def read_keras(file: Path | io.BytesIO) -> Entries:
    """`layer/variable` of an .h5 file, in Keras' layout. Raises UserError."""
    with needs_extra("weights", "reading Keras' files"):
        import h5py
    found: dict[str, Any] = {}

    def collect(name: str, node: Any) -> None:  # links to other files are not followed
        if isinstance(node, h5py.Dataset):
            found[name] = node

    try:
        with h5py.File(file, "r") as h5:
            h5.visititems(collect)
            by_order = {n: d for n, d in found.items() if "/vars/" in f"/{n}"}
            others: list[str] = []
            chosen = _named_by_order(by_order, others) if by_order else _named(found)
            entries = Entries.of({name: _tensor(name, data) for name, data in chosen.items()})
            entries.others.extend(others)
            return entries
    except UserError:
        raise
    except Exception as error:  # h5py raises many kinds for corrupt files
        raise UserError(f"corrupt, or not a file of Keras' weights: {error}") from error


def read_archive(content: bytes) -> Entries:
    """What a .keras file holds, a zip archive around an .h5. Raises UserError."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            part = archive.getinfo(WEIGHTS)
            if part.file_size > 2 * len(content):
                raise UserError(f"its {WEIGHTS} claims to be far larger than the file")
            return read_keras(io.BytesIO(archive.read(part)))
    except UserError:
        raise
    except (*BAD_ZIP, KeyError) as error:
        raise UserError(f"corrupt: {error}") from error


def _named(found: dict[str, Any]) -> dict[str, Any]:
    """model_weights/conv1_bn/conv1_bn/gamma:0 -> conv1_bn/gamma; of a network within another
    densenet121/conv1_bn/gamma. Optimizers' values are left."""
    chosen = {}
    for name, data in found.items():
        *groups, variable = name.removeprefix("model_weights/").split("/")
        if groups and groups[0] != "optimizer_weights":
            half = len(groups) // 2
            if groups[:half] == groups[half:]:  # each layer stands there twice
                groups = groups[:half]
            chosen[f"{'/'.join(groups)}/{variable.split(':')[0]}"] = data
    return chosen


def _named_by_order(found: dict[str, Any], others: list[str]) -> dict[str, Any]:
    """layers/batch_normalization_3/vars/0 -> conv2_block2_0_bn/gamma, by the network's order.

    The network is the group with the most convolutions: a model may have it as one of its layers,
    and its class head beside it. The names of what else is there go to
    `others`.
    """
    groups: dict[str, dict[str, dict[int, dict[str, Any]]]] = {}
    for name, data in found.items():
        match = re.fullmatch(r"(?:(.*)/)?([^/]+)/vars/(\d{1,3})", name)
        kind, number = _counted(match[2]) if match else ("", 0)
        if match and kind in VARIABLES and int(match[3]) < len(VARIABLES[kind]):
            layers = groups.setdefault(match[1] or "", {kind: {} for kind in VARIABLES})
            layers[kind].setdefault(number, {})[VARIABLES[kind][int(match[3])]] = data
        elif not name.startswith("optimizer"):
            others.append(name)
    if not groups:
        raise UserError("holds none of a DenseNet's layers: Conv2D, BatchNormalization, Dense")
    group = max(groups, key=lambda group: len(groups[group]["conv2d"]))
    layers = groups[group]
    outside = [g["dense"] for place, g in groups.items() if place != group and g["dense"]]
    if not layers["dense"] and len(outside) == 1 and len(outside[0]) == 1:
        layers["dense"] = outside[0]
    convolutions = [layers["conv2d"][number] for number in sorted(layers["conv2d"])]
    kernels = [tuple(conv["kernel"].shape) for conv in convolutions if "kernel" in conv]
    convs, norms = _order(kernels)
    dense = ["predictions"] if layers["dense"] else []  # none: include_top=False
    chosen: dict[str, Any] = {}
    for kind, names in zip(VARIABLES, (convs, norms, dense), strict=True):
        if len(names) != len(layers[kind]):
            raise UserError(
                f"{len(layers[kind])} {kind} layers, where a DenseNet of keras.applications with "
                f"{len(kernels)} convolutions has {len(names)}"
            )
        for name, number in zip(names, sorted(layers[kind]), strict=True):
            chosen |= {f"{name}/{v}": data for v, data in layers[kind][number].items()}
    return chosen


def _counted(layer: str) -> tuple[str, int]:
    """conv2d_7 -> ("conv2d", 7); conv2d -> ("conv2d", 0)."""
    kind, _, number = layer.rpartition("_")
    return (kind, int(number)) if number.isdecimal() else (layer, 0)


def _order(kernels: list[tuple[int, ...]]) -> tuple[list[str], list[str]]:
    """Names of convolutions and norms in keras.applications' order.

    A 1x1 kernel that a 3x3 one follows is a layer's, any other a transition's.
    """
    convs, norms = ["conv1_conv"], ["conv1_bn"]
    block, layer, i = 2, 0, 1
    while i < len(kernels):
        if i + 1 < len(kernels) and kernels[i + 1][:2] == (3, 3):
            layer += 1
            name = f"conv{block}_block{layer}"
            convs += [f"{name}_1_conv", f"{name}_2_conv"]
            norms += [f"{name}_0_bn", f"{name}_1_bn"]
            i += 2
        else:
            convs.append(f"pool{block}_conv")
            norms.append(f"pool{block}_bn")
            block, layer, i = block + 1, 0, i + 1
    return convs, [*norms, "bn"]


def _tensor(name: str, data: Any) -> Tensor:
    """A dataset's values, all of which the file must hold: an empty one can claim any size."""
    if data.dtype.kind not in "fiu" or data.dtype.itemsize > 8:
        raise UserError(f"{name} holds no numbers")
    if data.id.get_storage_size() != data.size * data.dtype.itemsize or data.external:
        raise UserError(f"{name} is compressed, not all there, or in another file; save it plain")
    array = data[()]
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
