"""Weights with torchvision's names into a model, whole or not at all: files, artifacts, the hub."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor

from densekit import artifact
from densekit.config import UserError, nearest
from densekit.models.densenet import DenseNet, DenseNetConfig
from densekit.models.variants import VARIANTS

StateDict = dict[str, Tensor]

TORCHVISION = ("densenet121", "densenet161", "densenet169", "densenet201")
WRAPPERS = ("state_dict", "model")  # keys under which others' checkpoints keep the weights
HEAD = ("classifier.weight", "classifier.bias")
# torchvision's files of 2017 say denselayer1.norm.1.weight for denselayer1.norm1.weight
OLD_KEY = re.compile(r"^(.*denselayer\d+\.(?:norm|conv))\.([12]\.\w+)$")


def start_from(model: DenseNet, pretrained: str) -> list[str]:
    """Loads what `model.pretrained` names into a network that is to be trained.

    Another class count makes a new head. Returns what a person should know. Raises UserError.
    """
    weights = find(pretrained, model.config)
    if not load_into(model, weights, new_head=True):
        return []
    return [
        f"model.pretrained={pretrained}: a new head of {model.config.num_classes} classes; the "
        f"weights' own has {len(weights[HEAD[0]])}"
    ]


def find(pretrained: str, config: DenseNetConfig) -> StateDict:
    """The tensors of an artifact, a run's best/, a weights file, or "torchvision"'s for `config`.

    Raises UserError.
    """
    if pretrained == "torchvision":
        return fetch(pretrained, variant_of(config))
    if Path(pretrained).is_dir():
        return artifact.read(artifact.locate(Path(pretrained))).state_dict
    return read(Path(pretrained))


def read(file: Path) -> StateDict:
    """Tensors of a .safetensors file, or of a .pth file without running code that it may hold.

    Wrappers ({"state_dict": ...}), `module.` before the names and torchvision's old names are
    undone. Raises UserError.
    """
    try:
        if file.suffix == ".safetensors":
            return clean(load_file(file))
        return clean(torch.load(file, map_location="cpu", weights_only=True))
    except FileNotFoundError as error:
        raise UserError(f"{file}: there is no such file{nearest_sibling(file)}") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror or error}") from error
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    except Exception as error:  # what a damaged file makes the unpickler raise has no common base
        raise UserError(
            f"{file}: cannot be read as tensors: it is damaged, or it holds Python objects, which "
            f"are not loaded because loading them can run code"
        ) from error


def clean(tree: Any) -> StateDict:
    """The state_dict in what a file held. Raises UserError where there is none."""
    for wrapper in WRAPPERS:
        if isinstance(tree, dict) and isinstance(tree.get(wrapper), dict):
            tree = tree[wrapper]
    if not isinstance(tree, dict) or not all(isinstance(t, Tensor) for t in tree.values()):
        raise UserError("holds no state_dict, a mapping from names to tensors")
    return {OLD_KEY.sub(r"\1\2", name.removeprefix("module.")): t for name, t in tree.items()}


def load_into(model: DenseNet, weights: StateDict, new_head: bool = False) -> list[str]:
    """Copies every tensor into `model`, in the model's dtypes and memory format, or none.

    With `new_head` a classifier of another class count is left as it was initialised. Returns the
    names of the tensors so left. num_batches_tracked may be missing. Raises UserError that lists
    the tensors that are missing, unknown or of another shape.
    """
    own = model.state_dict()
    left = [name for name in HEAD if new_head and _differs(name, own, weights)]
    weights = {name: t for name, t in weights.items() if name not in left}
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    problems = [
        *_listed("missing", own.keys() - weights.keys() - counters - set(left)),
        *_listed("unknown", weights.keys() - own.keys()),
        *_listed("of another shape", _misshapen(own, weights)),
        *_remedies(own, weights),
    ]
    if problems:
        raise UserError("the weights do not fit the model:\n  " + "\n  ".join(problems))
    model.load_state_dict(own | weights)
    return left


def fetch(origin: str, variant: str) -> StateDict:
    """The ImageNet weights of `variant` from torchvision's hub, or from its cache on this disk."""
    assert origin == "torchvision", origin
    if variant not in TORCHVISION:
        raise UserError(f"torchvision has no weights for {variant}{nearest(variant, TORCHVISION)}")
    weights = torchvision.models.get_model_weights(variant)["IMAGENET1K_V1"]
    try:
        return clean(weights.get_state_dict(check_hash=True, weights_only=True))
    except Exception as error:  # no network, a full disk, a damaged file in the cache
        raise UserError(
            f"{weights.url}: cannot be fetched, or read from {torch.hub.get_dir()}: "
            f"{type(error).__name__}: {error}; fetch it elsewhere and give the file"
        ) from error


def variant_of(config: DenseNetConfig) -> str:
    """The variant of torchvision's whose body `config` has. Raises UserError."""
    body = ("growth_rate", "block_config", "num_init_features", "bn_size", "compression", "stem")
    for name in TORCHVISION:
        if all(getattr(VARIANTS[name], key) == getattr(config, key) for key in body):
            return name
    raise UserError(
        f"model.pretrained=torchvision: torchvision has weights for {', '.join(TORCHVISION)} "
        f"only; give a file, or one of these as model.name"
    )


def nearest_sibling(path: Path) -> str:
    """`; did you mean "x"?` for a file or folder beside a path that does not exist."""
    parent = path.parent
    names = [entry.name for entry in parent.iterdir()] if parent.is_dir() else []
    hint = nearest(path.name, names)
    return hint if "did you mean" in hint else ""


def _differs(name: str, own: StateDict, weights: StateDict) -> bool:
    return name in weights and own[name].shape != weights[name].shape


def _misshapen(own: StateDict, weights: StateDict) -> list[str]:
    return [
        f"{name} {list(weights[name].shape)} instead of {list(own[name].shape)}"
        for name in own
        if _differs(name, own, weights)
    ]


def _listed(problem: str, names: Iterable[str]) -> list[str]:
    """One line for all of `names`: the first five, and how many more."""
    names = sorted(names)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return [f"{problem}: {', '.join(names[:5])}{more}"] if names else []


def _remedies(own: StateDict, weights: StateDict) -> list[str]:
    """What to set where the two ends are all that may differ."""
    found = []
    for name, axis, key in (
        ("features.conv0.weight", 1, "in_channels"),
        (HEAD[0], 0, "num_classes"),
    ):
        theirs = weights.get(name, own[name]).shape
        if len(theirs) > axis and theirs[axis] != own[name].shape[axis]:
            found.append(f"these weights are for model.{key}={theirs[axis]}")
    return found
