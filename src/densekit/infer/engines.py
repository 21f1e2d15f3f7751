"""A network as one callable: uint8 images [n, C, H, W] -> float32 logits [n, K] on the CPU.

torch runs artifacts; an exported network runs in the engine of its file, on the CPU, with as many
threads as torch has.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from densekit.config import UserError, nearest, needs_extra
from densekit.data.transforms import standardize
from densekit.infer.exported import INPUT, LOGITS, Exported, Target
from densekit.infer.model import Opened
from densekit.models.artifact import Preprocessing
from densekit.models.densenet import DenseNet
from densekit.precision import Precision

Logits = Callable[[Tensor], Tensor]
Runtime = Callable[[np.ndarray], np.ndarray]
"""The input of an exported file -> its logits, float32 [n, K]. Thread-safe."""

ENGINE_NAMES = ("auto", "torch", "onnxruntime", "openvino")
ENGINES: dict[Target | None, tuple[str, ...]] = {
    None: ("torch",),  # an artifact
    "torch-export": ("torch",),
    "onnx": ("onnxruntime", "openvino"),
    "onnx-int8": ("onnxruntime", "openvino"),
    "openvino": ("openvino",),
    "openvino-int8": ("openvino",),
}
"""The engines that can run each format; auto takes the first."""


def resolve_engine(opened: Opened, engine: str) -> str:
    """The engine, auto resolved by the table. Raises UserError for one that cannot run it."""
    if engine not in ENGINE_NAMES:
        raise UserError(f"--engine {engine}: unknown engine{nearest(engine, ENGINE_NAMES)}")
    network = opened.network
    to = None if isinstance(network, DenseNet) else network.config.export.to
    if engine == "auto":
        return ENGINES[to][0]
    if engine not in ENGINES[to]:
        raise UserError(f"--engine {engine}: {_where_it_runs(to, engine)}")
    return engine


def open_engine(opened: Opened, precision: Precision, engine: str = "auto") -> Logits:
    """The network as a callable. Raises UserError for an unsupported engine or format."""
    name, network = resolve_engine(opened, engine), opened.network
    if isinstance(network, DenseNet):
        return logits_of(network, opened.preprocessing, precision, network.op)
    check_formats(network, precision, name)
    return exported_logits(network, RUNS[name](network, precision))


def _where_it_runs(to: Target | None, engine: str) -> str:
    """Which engines can run it, for an error."""
    if to is not None:
        return f"a network exported to {to} is computed by {' or '.join(ENGINES[to])}"
    target = "onnx" if engine == "onnxruntime" else engine
    return (
        f"an artifact is computed by torch; export it first (densekit export ARTIFACT --to "
        f"{target}), and give the folder that this writes"
    )


def check_formats(exported: Exported, precision: Precision, engine: str) -> None:
    """Raises UserError for a device or precision that `engine` does not support."""
    to = exported.config.export.to
    if precision.device.type != "cpu":
        raise UserError(
            f"--device {precision.device.type}: a network exported to {to} is computed on the CPU; "
            f"leave it out, or give the artifact"
        )
    if precision.name != "fp32" and (engine != "openvino" or to.endswith("int8")):
        raise UserError(
            f"--precision {precision.name}: what is exported to {to} is computed by {engine} as it "
            f"was written; leave it out"
        )


# torch --------------------------------------------------------------------------------------


def preparing(
    mean: tuple[float, ...], std: tuple[float, ...], precision: Precision
) -> Callable[[Tensor], Tensor]:
    """uint8 images [n, C, H, W] -> normalised floats on the device, in its memory format; `mean`
    and `std` as in `Preprocessing`."""
    return lambda images: standardize(precision.send(images), mean, std, precision.memory_format)


def logits_of(
    model: nn.Module, preprocessing: Preprocessing, precision: Precision, op: str = "auto"
) -> Logits:
    """torch's engine: `model` in eval mode with `op`, normalised on its device.

    The op used in training does not matter, so an evaluation during training equals that of the
    artifact. A network in training is copied: its mode, op and memory format do not change.
    """
    other = isinstance(model, DenseNet) and model.op != op
    if model.training or other:
        model = copy.deepcopy(model).eval()
    if isinstance(model, DenseNet) and other:
        model.set_op(op)
    prepare = preparing(preprocessing.mean, preprocessing.std, precision)
    model = precision.place(model)

    def logits(images: Tensor) -> Tensor:
        with torch.inference_mode(), precision.autocast():
            return model(prepare(images)).float().cpu()

    return logits


# Exported files -----------------------------------------------------------------------------


def exported_logits(exported: Exported, run: Runtime) -> Logits:
    """`run` on the file's input: the images unchanged, or normalised."""
    config, side = exported.config, exported.config.preprocessing.crop

    def logits(images: Tensor) -> Tensor:
        if not config.export.dynamic_size and images.shape[2:] != (side, side):
            # OpenVINO would return wrong results
            raise UserError(
                f"{exported.folder}: takes images of {side} x {side} pixels, got "
                f"{images.shape[2]} x {images.shape[3]}; export it with --dynamic-size"
            )
        if config.export.with_preprocessing:
            given = images.permute(0, 2, 3, 1)
        else:
            given = config.preprocessing.normalize(images)
        return torch.from_numpy(run(given.contiguous().numpy()))

    return logits


def run_onnxruntime(exported: Exported, precision: Precision) -> Runtime:
    """ONNX Runtime's session for a model.onnx."""
    with needs_extra("export", str(exported.folder)):
        import onnxruntime as runtime
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # its warnings are about its own graph
    session = runtime.InferenceSession(
        str(exported.file), options, providers=["CPUExecutionProvider"]
    )
    return lambda images: session.run([LOGITS], {INPUT: images})[0]


def run_openvino(exported: Exported, precision: Precision) -> Runtime:
    """OpenVINO's compiled model for a model.xml or model.onnx.

    It defaults to bf16 on a CPU with bf16 instructions, so the precision is always set.
    """
    with needs_extra("export", str(exported.folder)):
        import openvino
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision.name == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(str(exported.file), "CPU", settings)
    output, requests = compiled.output(LOGITS), threading.local()

    def run(images: np.ndarray) -> np.ndarray:
        if not hasattr(requests, "own"):  # a request serves one thread at a time
            requests.own = compiled.create_infer_request()
        return requests.own.infer({INPUT: images})[output]

    return run


def run_program(exported: Exported, precision: Precision) -> Runtime:
    """torch's own exported program, a model.pt2."""
    program = torch.export.load(exported.file).module()

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            outputs = program(torch.from_numpy(images))
        return outputs[-1].numpy()  # the logits come last

    return run


RUNS: dict[str, Callable[[Exported, Precision], Runtime]] = {
    "torch": run_program,
    "onnxruntime": run_onnxruntime,
    "openvino": run_openvino,
}
