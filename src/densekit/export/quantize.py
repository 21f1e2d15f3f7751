"""int8 quantization: weights per output channel, activations per tensor, by each engine's own tool.

If a network loses too much accuracy, some layers stay in float32. To choose them, torch rounds each
layer alone to 8 bits; those that change the logits most come first.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from densekit.export.network import ExportedNetwork
from densekit.infer.exported import INPUT
from densekit.progress import bar

CALIBRATION_IMAGES = 300
RANKING_IMAGES = 16
LAYERS = (nn.Conv2d, nn.Linear)


# The tools ----------------------------------------------------------------------------------


def quantize_openvino(model: Any, images: np.ndarray, float_layers: Sequence[str]) -> Any:
    """OpenVINO's model quantized by NNCF; `images` in its input format."""
    import nncf

    nncf.set_log_level(logging.ERROR)
    # its progress bar belongs on the terminal, and stdout to our result
    shown = sys.stderr if sys.stderr.isatty() else io.StringIO()
    with contextlib.redirect_stdout(shown):
        return nncf.quantize(
            model,
            nncf.Dataset([image[None] for image in images]),
            subset_size=len(images),
            ignored_scope=nncf.IgnoredScope(names=_operations(model, float_layers)),
        )


def _operations(model: Any, layers: Sequence[str]) -> list[str]:
    """OpenVINO's names of these layers' convolutions: with a bias, the sum has the layer's name."""
    there = {op.get_friendly_name() for op in model.get_ordered_ops()}
    split = {f"{layer}/WithoutBiases" for layer in layers} & there
    return [*split, *(layer for layer in layers if f"{layer}/WithoutBiases" not in there)]


def quantize_onnx(model: Any, images: np.ndarray, float_layers: Sequence[str]) -> Any:
    """An ONNX ModelProto statically quantized by ONNX Runtime (QDQ)."""
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(bar(images, len(images), "calibrating int8"))

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.left, None)
            return None if image is None else {INPUT: image[None]}

    with tempfile.TemporaryDirectory() as folder, _without_warnings():
        place = Path(folder) / "int8.onnx"
        own = onnx.ModelProto()
        own.CopyFrom(model)  # it moves its input's weights to an external file
        quantize_static(
            own, place, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
            op_types_to_quantize=["Conv", "Gemm"], nodes_to_exclude=list(float_layers),
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip
        return onnx.load(place)


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """ONNX Runtime logs advice to run a step that torch's exporter has already done."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)


# Which layers hurt --------------------------------------------------------------------------


def by_harm(network: ExportedNetwork, images: np.ndarray) -> list[str]:
    """The layers' names; first the one whose rounding to 8 bits changes the logits most."""
    layers = {
        name.removeprefix("network."): module
        for name, module in network.named_modules()
        if isinstance(module, LAYERS)
    }
    given = torch.from_numpy(images[:RANKING_IMAGES])
    with torch.inference_mode():
        wanted = network(given)[-1]
        harm = {}
        for name, layer in bar(layers.items(), len(layers), "looking for layers that int8 hurts"):
            harm[name] = (_rounded(network, layer, given) - wanted).norm().item()
    return sorted(harm, key=lambda name: -harm[name])


def _rounded(network: ExportedNetwork, layer: nn.Module, images: Tensor) -> Tensor:
    """The logits with `layer` alone in 8 bits."""
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    kept = weight.detach().clone()
    hook = layer.register_forward_pre_hook(lambda module, given: (_in_8_bits(given[0]),))
    try:
        scale = kept.flatten(1).abs().amax(1).clamp(min=1e-12) / 127
        zeros = torch.zeros_like(scale, dtype=torch.int32)
        weight.copy_(torch.fake_quantize_per_channel_affine(kept, scale, zeros, 0, -127, 127))
        return network(images)[-1]
    finally:
        weight.copy_(kept)
        hook.remove()


def _in_8_bits(x: Tensor) -> Tensor:
    """A tensor rounded to 256 levels between its minimum and maximum."""
    low, high = x.min().clamp(max=0.0), x.max().clamp(min=0.0)
    scale = ((high - low) / 255).clamp(min=1e-12).item()
    return torch.fake_quantize_per_tensor_affine(x, scale, round(-low.item() / scale), 0, 255)
