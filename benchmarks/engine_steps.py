"""Other engines' sides of inference: torchvision's network as ONNX, run as their guides say.

They start from a batch that is normalised already.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

import torchvision_steps
from densekit.bench.rounds import StepFunction
from densekit_steps import Workload


def openvino(work: Workload, precision: str) -> StepFunction:
    """OpenVINO on the CPU, for the batch's own shape, in f32 or bf16."""
    ov = import_module("openvino")

    core = ov.Core()
    model = _exported(work, core.read_model)
    images = torchvision_steps.normalised_batch(work).numpy()
    model.reshape(list(images.shape))
    hints = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    request = core.compile_model(model, "CPU", hints).create_infer_request()
    return lambda: request.infer([images])


def onnxruntime(work: Workload) -> StepFunction:
    """ONNX Runtime's CPU provider, all optimizations on as it comes, in float32."""
    ort = import_module("onnxruntime")

    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    providers = ["CPUExecutionProvider"]
    session = _exported(work, lambda file: ort.InferenceSession(file, options, providers=providers))
    images, name = torchvision_steps.normalised_batch(work).numpy(), session.get_inputs()[0].name
    return lambda: session.run(None, {name: images})


def _exported(work: Workload, read: Callable[[str], Any]) -> Any:
    """What `read` makes of the ONNX file, which is not kept."""
    model = torchvision_steps.network(work.model).eval()
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "model.onnx")
        images = torchvision_steps.normalised_batch(work)
        torch.onnx.export(model, (images,), file, dynamo=True, external_data=False, verbose=False)
        return read(file)
