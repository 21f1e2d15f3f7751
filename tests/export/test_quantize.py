"""quantize.py: which layers int8 hurts, and that those which are named stay in float."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from densekit.config import UserError
from densekit.export import formats, quantize, steps
from densekit.export.network import ExportedNetwork, traced
from densekit.infer.model import Opened
from densekit.models.densenet import DenseNet, DenseNetConfig

CONFIG = DenseNetConfig(
    growth_rate=8, block_config=(2, 1), num_init_features=16, stem="cifar", num_classes=5,
    image_size=16,
)  # fmt: skip
KEPT = ("features.denseblock1.denselayer1.conv2", "features.transition1.conv")


@pytest.fixture(scope="module")
def network() -> ExportedNetwork:
    torch.manual_seed(0)
    made = DenseNet(CONFIG)
    made(torch.randn(16, 3, 16, 16))  # running statistics
    return ExportedNetwork(made.eval(), "multiclass")


@pytest.fixture(scope="module")
def onnx_model(network: ExportedNetwork) -> Any:
    return formats.to_onnx(traced(network, 3, 16, any_size=False), with_preprocessing=False)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(16, 3, 16, 16)).astype(np.float32)


def names(network: ExportedNetwork) -> set[str]:
    """Of the layers that have weights to round."""
    found = network.network.named_modules()
    return {name for name, module in found if isinstance(module, quantize.LAYERS)}


def test_the_layer_that_is_hurt_comes_first_and_nothing_is_changed(
    network: ExportedNetwork, images: np.ndarray
) -> None:
    """One input channel of a layer is 1e5 times the others, and its weights make up for it."""
    hurt = "features.denseblock2.denselayer1"
    layers = dict(network.network.named_modules())
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    norm, conv = layers[f"{hurt}.norm1"], layers[f"{hurt}.conv1"]
    with torch.no_grad():
        norm.weight[0] *= 1e5  # type: ignore[index, operator]
        norm.bias[0] *= 1e5  # type: ignore[index, operator]
        conv.weight[:, 0] /= 1e5  # type: ignore[index, operator]
    changed = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    try:
        found = quantize.by_harm(network, images)
        assert found[0] == f"{hurt}.conv1"
        assert set(found) == names(network)
        assert all(torch.equal(changed[n], t) for n, t in network.state_dict().items())
        assert not any(module._forward_pre_hooks for module in network.modules())
    finally:
        network.load_state_dict(before)


def stored_as(operation: Any) -> str:
    """The number format of the weights that an operation of OpenVINO makes its value from."""
    while operation.get_type_name() != "Constant":
        operation = operation.input_value(0).get_node()
    return operation.get_element_type().get_type_name()


@pytest.mark.parametrize("kept", [(), KEPT])
def test_onnx_runtime_leaves_the_named_layers_in_float(
    onnx_model: Any, images: np.ndarray, network: ExportedNetwork, kept: tuple[str, ...]
) -> None:
    made = quantize.quantize_onnx(onnx_model, images, kept)
    rounds = {output for n in made.graph.node if "Dequantize" in n.op_type for output in n.output}
    weighted = [n for n in made.graph.node if n.op_type in formats.WEIGHTED]
    in_float = {n.name for n in weighted if n.input[1] not in rounds}
    assert in_float == set(kept)
    assert {n.name for n in weighted} == names(network)
    plain = [n for n in onnx_model.graph.node if "Quantize" in n.op_type]
    assert not plain, "what it is given stays as it is"


@pytest.mark.parametrize("kept", [(), KEPT])
def test_nncf_leaves_the_named_layers_in_float(
    onnx_model: Any, images: np.ndarray, network: ExportedNetwork, kept: tuple[str, ...]
) -> None:
    made = quantize.quantize_openvino(formats.to_openvino(onnx_model), images, kept)
    products = {"Convolution", "MatMul"}
    layers = [op for op in made.get_ordered_ops() if op.get_type_name() in products]
    in_float = {
        op.get_friendly_name().removesuffix("/WithoutBiases")
        for op in layers
        if stored_as(op.input_value(1).get_node()) == "f32"
    }
    assert in_float == set(kept)
    assert len(layers) == len(names(network))


@pytest.mark.parametrize(
    ("to", "package"),
    [
        ("onnx", "onnxscript"),
        ("openvino", "openvino"),
        ("openvino-int8", "nncf"),
        ("onnx-int8", "onnxruntime.quantization"),
    ],
)
def test_without_its_package_the_extra_is_named(
    opened: Opened, tmp_path: Path, to: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is converted."""
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(steps, "traced", lambda *_: pytest.fail("converted in vain"))
    name = package.partition(".")[0]
    says = rf'^--to {to} needs {name}: pip install "densekit\[export\]"$'
    with pytest.raises(UserError, match=says):
        steps.export_network(opened, tmp_path / "out", steps.ExportOptions(to))
    assert list(tmp_path.iterdir()) == []
