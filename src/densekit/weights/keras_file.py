"""Keras' HDF5 files: .h5 of layers by name, .weights.h5 of layers by their order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from densekit.config import UserError

VARIABLES = {
    "conv2d": ("kernel",),
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "dense": ("kernel", "bias"),
}  # in the order of .weights.h5


def read(path: Path) -> dict[str, Tensor]:
    """`layer/variable` -> tensor, in Keras' layout. Raises UserError."""
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise UserError(
            'reading Keras\' files takes h5py: pip install "densekit[weights]"'
        ) from error
    found: dict[str, Any] = {}

    def collect(name: str, node: Any) -> None:  # links to other files are not followed
        if isinstance(node, h5py.Dataset):
            found[name] = node

    try:
        with h5py.File(path, "r") as file:
            file.visititems(collect)
            by_order = {n: d for n, d in found.items() if n.startswith("layers/")}
            chosen = _named_by_order(by_order) if by_order else _named(found)
            return {name: _tensor(name, data) for name, data in chosen.items()}
    except UserError:
        raise
    except Exception as error:  # h5py raises many kinds for damaged files
        raise UserError(f"damaged, or no file of Keras' weights: {error}") from error


def _named(found: dict[str, Any]) -> dict[str, Any]:
    """model_weights/conv1_bn/conv1_bn/gamma:0 -> conv1_bn/gamma. Optimizers' values are left."""
    chosen = {}
    for name, data in found.items():
        *groups, variable = name.removeprefix("model_weights/").split("/")
        if groups and groups[0] != "optimizer_weights":
            layer = "/".join(groups[: (len(groups) + 1) // 2])  # each layer stands there twice
            chosen[f"{layer}/{variable.split(':')[0]}"] = data
    return chosen


def _named_by_order(found: dict[str, Any]) -> dict[str, Any]:
    """layers/batch_normalization_3/vars/0 -> conv2_block2_0_bn/gamma, by the network's order."""
    layers: dict[str, dict[int, dict[str, Any]]] = {kind: {} for kind in VARIABLES}
    for name, data in found.items():
        match name.split("/"):
            case [_, layer, "vars", place] if place.isdecimal():
                kind, number = _counted(layer)
                if kind in VARIABLES and int(place) < len(VARIABLES[kind]):
                    layers[kind].setdefault(number, {})[VARIABLES[kind][int(place)]] = data
                    continue
        raise UserError(f"{name} is no part of a DenseNet of keras.applications")
    convolutions = [layers["conv2d"][number] for number in sorted(layers["conv2d"])]
    kernels = [tuple(conv["kernel"].shape) for conv in convolutions if "kernel" in conv]
    names = _order(kernels)
    kinds = zip(("conv2d", "batch_normalization", "dense"), names, strict=True)
    chosen: dict[str, Any] = {}
    for kind, of_kind in kinds:
        if len(of_kind) != len(layers[kind]):
            raise UserError(
                f"{len(layers[kind])} {kind} layers, where a DenseNet of keras.applications with "
                f"{len(kernels)} convolutions has {len(of_kind)}"
            )
        for name, number in zip(of_kind, sorted(layers[kind]), strict=True):
            chosen |= {f"{name}/{v}": data for v, data in layers[kind][number].items()}
    return chosen


def _counted(layer: str) -> tuple[str, int]:
    """conv2d_7 -> ("conv2d", 7); conv2d -> ("conv2d", 0)."""
    kind, _, number = layer.rpartition("_")
    return (kind, int(number)) if number.isdecimal() else (layer, 0)


def _order(kernels: list[tuple[int, ...]]) -> tuple[list[str], list[str], list[str]]:
    """Names of convolutions, norms and dense layers in keras.applications' order.

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
    return convs, [*norms, "bn"], ["predictions"]


def _tensor(name: str, data: Any) -> Tensor:
    """A dataset's values, all of which the file must hold: an empty one can claim any size."""
    if data.dtype.kind not in "fiu" or data.dtype.itemsize > 8:
        raise UserError(f"{name} holds no numbers")
    if data.id.get_storage_size() != data.size * data.dtype.itemsize or data.external:
        raise UserError(f"{name} is compressed, not all there, or in another file; save it plain")
    array = data[()]
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
