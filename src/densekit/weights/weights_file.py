"""Files of weights, whoever wrote them -> tensors with our names, and back.

The format is found in the file's first bytes, the library in the tensors' names, the variant in
their shapes; a file's suffix decides nothing but what is written.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from densekit.config import UserError, nearest
from densekit.files import digest, write_atomically
from densekit.models.densenet import DenseNetConfig
from densekit.models.variants import VARIANTS, variant
from densekit.weights import keras_file, keymaps, layouts, paddle_file, pickles, torch_file
from densekit.weights.keymaps import KeyMap
from densekit.weights.layouts import Entries, Layout

StateDict = dict[str, Tensor]

WRITTEN: dict[str, KeyMap] = {
    ".pdparams": keymaps.PADDLE,
    ".pth": keymaps.TORCHVISION,
    ".pt": keymaps.TORCHVISION,
    ".safetensors": keymaps.TORCHVISION,
}
READ = (*WRITTEN, ".bin", ".ckpt", ".tar", ".h5", ".keras")
BODY = ("growth_rate", "block_config", "num_init_features", "bn_size", "compression", "stem")


@dataclass(frozen=True)
class Weights:
    """What a file holds."""

    tensors: StateDict
    """By our names; what has none keeps its own."""
    keymap: KeyMap
    """Whose names they had."""
    sha256: str
    """Of the file."""
    notes: tuple[str, ...] = ()
    """What a person should know of how it was read."""
    thresholds: tuple[float | None, ...] | None = None
    """TorchXRayVision's op_threshs, one an output; None where it is NaN."""

    def at_eps(self, bn_eps: float) -> StateDict:
        return at_eps(self.tensors, self.keymap.bn_eps, bn_eps)


def at_eps(tensors: Mapping[str, Tensor], own: float, wanted: float) -> StateDict:
    """The same network for another BatchNorm epsilon: var + eps stays, so the logits stay."""
    if own == wanted:
        return dict(tensors)
    moved = own - wanted
    return {n: t + moved if n.endswith(".running_var") else t for n, t in tensors.items()}


# Reading ------------------------------------------------------------------------------------


def read_weights(path: Path, key: str | None = None) -> Weights:
    """The network in a file, or the one of several that `key` names, see layouts.find.

    Raises UserError for what cannot be read, is corrupt, or could run code.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe has no end
            raise UserError("not a file")
        held = entries(path)
        layout = layouts.find_network(held, key)
        tensors: StateDict = {}
        for name, ours in layout.names.items():
            if ours in tensors:
                raise UserError(f"holds {ours} twice")
            tensors[ours] = _tensor(name, held.tensors[name](), layout.keymap)
        if sum(tensor.nbytes for tensor in tensors.values()) > path.stat().st_size:
            raise UserError("corrupt: tensors larger than what is stored of them")
        notes = tuple(layout.notes(str(path)))
        points = _operating_points(held, layout)
        return Weights(tensors, layout.keymap, digest(path, "sha256"), notes, points)
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file{nearest_sibling(path)}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def entries(path: Path) -> Entries:
    """All that a file holds, by its first bytes. Raises UserError."""
    with path.open("rb") as file:
        head = file.read(512)
    if head[:8] == b"\x89HDF\r\n\x1a\n":
        return keras_file.read_keras(path)
    if head[8:9] == b"{":
        return _safetensors(path)
    content = path.read_bytes()
    if head[:4] == b"PK\x03\x04":
        keras = keras_file.WEIGHTS.encode() in content
        return keras_file.read_archive(content) if keras else torch_file.read_zip(content)
    if head[257:262] == b"ustar":
        raise UserError(
            "a tar archive: if torch 0.1 made it, save the weights again with a newer torch; if "
            "not, unpack it first"
        )
    if head[:1] != b"\x80":
        raise UserError("not a file of weights of torch, Paddle, Keras or safetensors")
    if head[2:].startswith(b"\x8a\x0a" + torch_file.LEGACY_MAGIC.to_bytes(10, "little")):
        return torch_file.read_legacy(io.BytesIO(content))
    return paddle_file.read_paddle(pickles.load_pickle(io.BytesIO(content)), len(content))


def _safetensors(path: Path) -> Entries:
    """Its reader checks sizes against the file before it takes memory."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"corrupt: {error}") from error
    return Entries.of(tensors)


def _tensor(name: str, tensor: Tensor, keymap: KeyMap) -> Tensor:
    """In torch's layout. Raises UserError for one that no DenseNet has."""
    if tensor.ndim == 5:
        raise UserError(f"{name} is a kernel over volumes; densekit has networks of images only")
    if not tensor.is_floating_point() and not name.endswith("num_batches_tracked"):
        raise UserError(
            f"{name} is {str(tensor.dtype).removeprefix('torch.')}, and weights are floating-point "
            f"numbers; if the network was quantized, save it dequantized"
        )
    axes = {4: keymap.kernel_axes, 2: keymap.matrix_axes}.get(tensor.ndim)
    return tensor if axes is None else tensor.permute(axes).contiguous()


def _operating_points(held: Entries, layout: Layout) -> tuple[float | None, ...] | None:
    read = held.tensors.get(f"{layout.prefix}{keymaps.OP_THRESHS}")
    if read is None or layout.keymap is not keymaps.TORCHXRAYVISION:
        return None
    values = read().flatten().tolist()
    if any(value < 0 or value > 1 for value in values):
        raise UserError(f"{keymaps.OP_THRESHS} holds something else than probabilities")
    return tuple(None if math.isnan(value) else value for value in values)


def nearest_sibling(path: Path) -> str:
    """`; did you mean "x"?` for a file or folder beside a path that does not exist."""
    parent = path.parent
    names = [entry.name for entry in parent.iterdir()] if parent.is_dir() else []
    hint = nearest(path.name, names)
    return hint if "did you mean" in hint else ""


# What it is ---------------------------------------------------------------------------------


def identify(weights: Weights, name: str | None = None) -> tuple[str, DenseNetConfig]:
    """The variant that the tensors' shapes tell, or `name`, with their classes and channels.

    Raises UserError where no variant has such shapes; whether all is there is not looked at.
    """
    own = _shapes(weights.tensors)
    if name is None:
        name = next((n for n in (*VARIANTS, _cifar_name(own)) if n and _same_body(n, own)), None)
    if name is None:
        raise UserError(
            f"no DenseNet of a known name has these tensors: blocks of {list(own['block_config'])} "
            f"layers, growth rate {own['growth_rate']}, {own['num_init_features']} channels from "
            f"the stem; give --model NAME to be told what is missing (densekit models lists them)"
        )
    ends = {key: own[key] for key in ("num_classes", "in_channels") if own[key]}
    return name, variant(name).model_copy(update={**ends, "bn_eps": weights.keymap.bn_eps})


def _shapes(tensors: StateDict) -> dict[str, Any]:
    """DenseNetConfig's fields as far as shapes tell them."""

    def size(name: str, axis: int) -> int:
        shape = tensors[name].shape if name in tensors else ()
        return shape[axis] if len(shape) > axis else 0

    layers: dict[int, int] = {}
    for name in tensors:
        fields = keymaps.layer_of(name)
        if fields:
            layers[fields[0]] = max(fields[1], layers.get(fields[0], 0))
    first = "features.denseblock1.denselayer1"
    bottleneck = f"{first}.conv2.weight" in tensors
    growth = size(f"{first}.conv{2 if bottleneck else 1}.weight", 0)
    entering = size("features.transition1.conv.weight", 1)
    return {
        "growth_rate": growth,
        "block_config": tuple(layers[b] for b in sorted(layers)),
        "num_init_features": size("features.conv0.weight", 0),
        "bn_size": size(f"{first}.conv1.weight", 0) // growth if bottleneck and growth else 0,
        "compression": size("features.transition1.conv.weight", 0) / entering if entering else 0,
        "stem": "imagenet" if size("features.conv0.weight", 2) == 7 else "cifar",
        "in_channels": size("features.conv0.weight", 1),
        "num_classes": size("classifier.weight", 0),
    }


def _cifar_name(own: Mapping[str, Any]) -> str | None:
    """By the pattern of the CIFAR names, which are more than VARIANTS lists."""
    blocks, bottleneck = set(own["block_config"]), own["bn_size"] > 0
    if own["stem"] != "cifar" or len(blocks) != 1 or not own["growth_rate"]:
        return None
    depth = 3 * (2 if bottleneck else 1) * blocks.pop() + 4
    return f"densenet{'_bc' if bottleneck else ''}_{depth}_{own['growth_rate']}"


def _same_body(name: str, own: Mapping[str, Any]) -> bool:
    return all(getattr(variant(name), key) == own[key] for key in BODY)


# Writing ------------------------------------------------------------------------------------


def write_weights(path: Path, tensors: StateDict, config: DenseNetConfig) -> list[str]:
    """Writes the format of the path's suffix and reads it back. Returns what a person should know.

    Raises UserError for what the format has no names for, and for a full or read-only disk.
    """
    keymap, said = WRITTEN[path.suffix], []
    if keymap is keymaps.PADDLE:
        _check_paddle(path, config)
    if config.bn_eps != keymap.bn_eps:
        tensors = at_eps(tensors, config.bn_eps, keymap.bn_eps)
        said = [f"{path}: made for BatchNorm's epsilon {keymap.bn_eps:g}, {keymap.name}'s, where "
                f"this network has {config.bn_eps:g}: running_var is moved by the difference, "
                f"which keeps the logits"]  # fmt: skip
    theirs = {}
    for name, tensor in tensors.items():
        their = keymap.theirs(name)
        assert their or name.endswith("num_batches_tracked"), name
        if their:
            theirs[their] = _turned_back(tensor, keymap)
    write_atomically(path, _bytes(path.suffix, theirs))
    _prove(path, theirs)
    return said


def _check_paddle(path: Path, config: DenseNetConfig) -> None:
    named = [n for n in VARIANTS if n.startswith("densenet") and VARIANTS[n].image_size == 224]
    if not any(all(getattr(VARIANTS[n], k) == getattr(config, k) for k in BODY) for n in named):
        raise UserError(f"{path}: PaddleClas has {', '.join(named)} only; write .pth instead")
    if config.in_channels != 3:
        raise UserError(f"{path}: PaddleClas' DenseNets take 3 channels, this {config.in_channels}")


def _turned_back(tensor: Tensor, keymap: KeyMap) -> Tensor:
    axes = {4: keymap.kernel_axes, 2: keymap.matrix_axes}.get(tensor.ndim, range(tensor.ndim))
    inverse = [list(axes).index(axis) for axis in range(tensor.ndim)]
    return tensor.detach().cpu().permute(inverse).contiguous()


def _bytes(suffix: str, tensors: StateDict) -> bytes:
    if suffix == ".pdparams":
        return paddle_file.paddle_bytes(tensors)
    if suffix == ".safetensors":
        return safetensors.torch.save(tensors, {"format": "pt"})
    return torch_file.torch_bytes(tensors)


def _prove(path: Path, written: StateDict) -> None:
    """What was written is what is read, or this is a bug of ours."""
    again = entries(path).tensors
    same = again.keys() == written.keys() and all(
        torch.equal(again[name](), tensor) for name, tensor in written.items()
    )
    assert same, f"{path} does not read back as what was written"
