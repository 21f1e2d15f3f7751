"""quantize.py: which layers int8 hurts, and that those which are named stay in float."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch

from densekit.config import UserError
from densekit.export import formats, quantize
from densekit.export.network import ExportedNetwork, traced
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
    ("package", "use"),
    [
        ("onnxscript", lambda model: formats.to_onnx(model, False)),
        ("openvino", formats.to_openvino),
        ("nncf", lambda model: quantize.quantize_openvino(model, np.zeros(1), ())),
        ("onnxruntime.quantization", lambda model: quantize.quantize_onnx(model, np.zeros(1), ())),
    ],
)
def test_without_its_package_the_extra_is_named(
    package: str, use: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    name = package.partition(".")[0]
    says = rf'^--to .* needs {name}: pip install "densekit\[export\]"$'
    with pytest.raises(UserError, match=says):
        use(None)
