"""Small networks and files of other libraries, written as those libraries write them."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from densekit.data.transforms import Preprocessing
from densekit.models.artifact import ArtifactConfig, Described, Task, write_artifact
from densekit.models.densenet import DenseNet, DenseNetConfig
from densekit.weights import keymaps
from densekit.weights.keymaps import KeyMap

TINY = DenseNetConfig(
    growth_rate=12, block_config=(2, 2, 2), num_init_features=24, stem="cifar", init="fan_out",
    num_classes=5, image_size=32,
)  # fmt: skip
"""densenet_bc_16_12, but for the classes."""

SMALL = DenseNetConfig(
    growth_rate=4, block_config=(2, 3, 2, 2), num_init_features=8, num_classes=5
)  # fmt: skip
"""With ImageNet's stem, which Paddle's and Keras' names have a place for."""


def shaken(model: nn.Module) -> nn.Module:
    """Norms as after some training: fresh ones hide a mixed-up scale, shift or statistic."""
    torch.manual_seed(7)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.bias)
    return model.eval()


def small() -> dict[str, Tensor]:
    torch.manual_seed(7)
    return shaken(DenseNet(SMALL)).state_dict()


def tiny(**changes: object) -> DenseNet:
    torch.manual_seed(7)
    model = shaken(DenseNet(TINY.model_copy(update=changes), op="reference"))
    assert isinstance(model, DenseNet)
    return model


def tiny_artifact(folder: Path, task: Task = "multiclass", **changes: object) -> Path:
    """tiny(), for RGB images of 32 x 32, with classes a, b, c, d, e."""
    config = ArtifactConfig(
        task=task,
        model=Described(name="tiny", architecture=TINY.model_copy(update=changes)),
        preprocessing=Preprocessing(resize=None, crop=32),
        classes=("a", "b", "c", "d", "e"),
    )
    write_artifact(folder, config, tiny(**changes).state_dict())
    return folder


def densenet121(classes: int = 5, channels: int = 3) -> dict[str, Tensor]:
    """torchvision's, of another number of channels too."""
    torch.manual_seed(0)
    model = torchvision.models.densenet121(num_classes=classes)
    if channels != 3:
        model.features.conv0 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
    return shaken(model).state_dict()


def old_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's of 2017, denselayer1.norm.1.weight."""
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", k): t
            for k, t in state.items()}  # fmt: skip


def named_by(keymap: KeyMap, state: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """As a library stores them, by formulas of this file and not by the table's axes."""
    found = {}
    for name, tensor in state.items():
        their = keymap.theirs(name)
        if their is None:
            assert name.endswith("num_batches_tracked")
            continue
        array = tensor.numpy()
        if keymap in (keymaps.KERAS, keymaps.KERAS_2017):
            array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
        elif keymap is keymaps.PADDLE and array.ndim == 2:
            array = array.T
        found[their] = np.ascontiguousarray(array)
    return found


def write_paddle(file: Path, state: dict[str, Tensor], protocol: int = 4) -> None:
    arrays: dict[str, object] = dict(named_by(keymaps.PADDLE, state))
    arrays["StructuredToParameterName@@"] = {name: f"{name}_0" for name in arrays}
    file.write_bytes(pickle.dumps(arrays, protocol))


def write_keras(file: Path, state: dict[str, Tensor], keymap: KeyMap = keymaps.KERAS) -> None:
    """Layers by name, each group twice, as Keras' save_weights to .h5."""
    import h5py

    with h5py.File(file, "w") as h5:
        for name, array in named_by(keymap, state).items():
            layer, variable = name.rsplit("/", 1)
            h5[f"{layer}/{layer}/{variable}:0"] = array
        h5["optimizer_weights/learning_rate"] = 0.1


ORDER = {"kernel": 0, "bias": 1, "gamma": 0, "beta": 1, "moving_mean": 2, "moving_variance": 3}


def write_keras_by_order(file: Path, state: dict[str, Tensor]) -> None:
    """Layers by kind and number, as Keras 3 does to .weights.h5."""
    import h5py

    counts = {"conv2d": 0, "batch_normalization": 0, "dense": 0}
    places: dict[str, str] = {}
    with h5py.File(file, "w") as h5:
        for name, array in named_by(keymaps.KERAS, state).items():
            layer, variable = name.rsplit("/", 1)
            kind = ("batch_normalization" if layer.endswith("bn") else
                    "dense" if layer == "predictions" else "conv2d")  # fmt: skip
            if layer not in places:
                number, counts[kind] = counts[kind], counts[kind] + 1
                places[layer] = f"{kind}_{number}" if number else kind
            h5[f"layers/{places[layer]}/vars/{ORDER[variable]}"] = array
