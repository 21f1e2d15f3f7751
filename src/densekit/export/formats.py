"""Writes each target's file from torch's exported program, with the config in its metadata.

Convolutions are named after their modules, such as `features.denseblock1.denselayer1.conv1`, in
ONNX files and in OpenVINO's, which are converted from them.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from densekit.infer.exported import INPUT, LOGITS, PROBABILITIES
from densekit.models.artifact import METADATA_KEY

WEIGHTED = ("Conv", "Gemm", "MatMul")  # the ONNX operations with a layer's weights
PREFIX = "network."  # of module names in ExportedNetwork


def to_onnx(program: ExportedProgram, with_preprocessing: bool) -> Any:
    """The ONNX ModelProto of a program."""
    outputs = [PROBABILITIES, LOGITS] if with_preprocessing else [LOGITS]
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):  # onnxscript prints
        warnings.simplefilter("ignore")  # torch's exporter warns about its own code
        made = torch.onnx.export(
            program, dynamo=True, input_names=[INPUT], output_names=outputs, verbose=False
        )
    assert made is not None
    model = made.model_proto
    _name_layers(model)
    _name_sizes(model, with_preprocessing)
    return model


def _name_layers(model: Any) -> None:
    """Names layers after their modules; drops the exporter's notes, which hold source paths."""
    for node in model.graph.node:
        if node.op_type in WEIGHTED:
            weight = next((name for name in node.input if name.endswith(".weight")), None)
            if weight is not None:
                node.name = weight.removeprefix(PREFIX).removesuffix(".weight")
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.ClearField("metadata_props")
        value.ClearField("doc_string")
    graph.ClearField("value_info")
    graph.ClearField("metadata_props")
    model.ClearField("metadata_props")


def _name_sizes(model: Any, with_preprocessing: bool) -> None:
    names = ("N", "H", "W", "C") if with_preprocessing else ("N", "C", "H", "W")
    for value, axes in ((model.graph.input[0], names), *((o, "NK") for o in model.graph.output)):
        for dimension, name in zip(value.type.tensor_type.shape.dim, axes, strict=True):
            if dimension.dim_param:
                dimension.dim_param = name


def write_onnx(model: Any, folder: Path, text: str) -> None:
    """model.onnx, with the config's text in its metadata."""
    import onnx

    onnx.helper.set_model_props(model, {METADATA_KEY: text})
    onnx.save_model(model, folder / "model.onnx")


def write_openvino(model: Any, folder: Path, text: str) -> None:
    """model.xml and model.bin, with the config's text in rt_info. `model` is OpenVINO's own.

    Its weights stay float32: by default OpenVINO would store them in 16 bits.
    """
    import openvino

    model.set_rt_info(text, METADATA_KEY)
    openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)


def to_openvino(model: Any) -> Any:
    """OpenVINO's model of an ONNX ModelProto."""
    import openvino

    return openvino.Core().read_model(model.SerializeToString())


def write_program(program: ExportedProgram, folder: Path, text: str) -> None:
    """model.pt2, with the config's text as its extra file densekit.json."""
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # has source paths
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about shared weights, which it stores once
        torch.export.save(program, folder / "model.pt2", extra_files={f"{METADATA_KEY}.json": text})
