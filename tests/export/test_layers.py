"""layers.py: of a file that answers otherwise than torch, the layer at which it begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from densekit.data.transforms import Preprocessing
from densekit.export import formats
from densekit.export.layers import compared, first_fault, torch_outputs
from densekit.export.network import ExportedNetwork, traced
from densekit.infer.exported import Exported, ExportedConfig, ExportSection, Target
from densekit.models.artifact import Described
from densekit.models.densenet import DenseNet, DenseNetConfig

CONFIG = DenseNetConfig(
    growth_rate=4, block_config=(2, 1), num_init_features=8, stem="cifar", num_classes=5,
    image_size=16,
)  # fmt: skip
SEEN = Preprocessing(resize=None, crop=16)
ORDER = [
    "features.denseblock1.denselayer1.conv2",
    "features.denseblock1.denselayer2.conv2",
    "features.transition1.conv",
    "features.denseblock2.denselayer1.conv2",
    "classifier",
]


def network(inside: bool = False, **changes: Any) -> ExportedNetwork:
    torch.manual_seed(0)
    made = DenseNet(CONFIG.model_copy(update=changes))
    made(torch.randn(16, 3, 16, 16))
    return ExportedNetwork(made.eval(), "multiclass", SEEN if inside else None)


def written(made: ExportedNetwork, to: Target, folder: Path) -> Exported:
    program, inside = traced(made, 3, 16, any_size=False), made.inside
    if to == "torch-export":
        formats.write_program(program, folder, "{}")
    elif to == "onnx":
        formats.write_onnx(formats.to_onnx(program, inside), folder, "{}")
    else:
        onnx = formats.to_onnx(program, inside)
        formats.write_openvino(formats.to_openvino(onnx), folder, "{}")
    config = ExportedConfig(
        model=Described(name="tiny", architecture=CONFIG), preprocessing=SEEN,
        classes=tuple("abcde"), export=ExportSection(to=to, with_preprocessing=inside),
    )  # fmt: skip
    return Exported(folder, config)


def noise(inside: bool) -> np.ndarray:
    draw = np.random.default_rng(0)
    if inside:
        return draw.integers(0, 256, (3, 16, 16, 3), np.uint8)
    return draw.normal(size=(3, 3, 16, 16)).astype(np.float32)


@pytest.mark.parametrize(
    ("to", "inside"), [("onnx", True), ("openvino", False), ("torch-export", True)]
)
def test_the_layer_whose_weights_are_other_is_found(
    tmp_path: Path, to: Target, inside: bool
) -> None:
    made, images = network(inside), noise(inside)
    exported = written(made, to, tmp_path)
    none = "no layer differs by itself; the difference grows by rounding"
    assert first_fault(made, exported, images) == none
    layers = dict(made.network.named_modules())
    for name in ORDER[1:]:
        weight = layers[name].weight
        assert isinstance(weight, torch.nn.Parameter)
        kept = weight.detach().clone()
        with torch.no_grad():
            weight *= 1.01
        says = first_fault(made, exported, images)
        with torch.no_grad():
            weight.copy_(kept)
        assert says.startswith(f"the first layer whose output differs is {name}, by 0.0"), says


def test_outputs_are_those_of_the_layers_in_order() -> None:
    made, images = network(), noise(False)
    assert list(compared(made)) == ORDER
    assert list(compared(network(bn_size=0))) == [n.replace("conv2", "conv1") for n in ORDER]
    found = torch_outputs(made, images)
    assert list(found) == ORDER
    with torch.inference_mode():
        np.testing.assert_array_equal(found["classifier"], made(torch.from_numpy(images))[0])
    assert not any(module._forward_hooks for module in made.modules())
