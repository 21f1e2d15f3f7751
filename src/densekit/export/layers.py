"""Finds where an export goes wrong: the first layer whose output differs from torch's.

Compared are the outputs that every engine keeps: of each dense layer, each transition and the
classifier. (Engines fold a norm that follows a convolution into it.)
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from densekit.export.network import ExportedNetwork, PooledTransition
from densekit.infer.exported import INPUT, LOGITS, Exported
from densekit.models.densenet import DenseLayer

TOLERANCE = 1e-4  # relative to the output's norm; rounding causes 1e-6
Outputs = Mapping[str, np.ndarray]
"""By layer name in the file."""


def first_fault(network: ExportedNetwork, exported: Exported, images: np.ndarray) -> str:
    """A sentence that names the first layer that differs by more than rounding, and by how much.

    `images` are in the file's input format.
    """
    ours = torch_outputs(network, images)
    theirs = READERS[exported.file.suffix](exported, list(ours), images)
    for name, wanted in ours.items():
        error = np.linalg.norm(theirs[name] - wanted) / max(np.linalg.norm(wanted), 1e-30)
        if not error <= TOLERANCE:
            return f"the first layer whose output differs is {name}, by {error:.2g} of its norm"
    return "no layer differs by itself; the difference grows by rounding"


def torch_outputs(network: nn.Module, images: np.ndarray) -> dict[str, np.ndarray]:
    """The output of each compared layer, in order."""
    found: dict[str, np.ndarray] = {}

    def keep(name: str, module: nn.Module, given: Any, output: Tensor) -> None:
        found[name] = output.numpy()

    hooks = [
        module.register_forward_hook(partial(keep, name))
        for name, module in compared(network).items()
    ]
    with torch.inference_mode():
        network(torch.from_numpy(images))
    for hook in hooks:
        hook.remove()
    return found


def compared(network: nn.Module) -> dict[str, nn.Module]:
    """Modules by their last convolution's name in the file."""
    found: dict[str, nn.Module] = {}
    for path, module in network.named_modules():
        name = path.removeprefix("network.")
        if isinstance(module, DenseLayer):
            found[f"{name}.{'conv2' if module.bottleneck else 'conv1'}"] = module
        elif isinstance(module, PooledTransition):
            found[f"{name}.conv"] = module
        elif name == "classifier":
            found[name] = module
    return found


# The engines' own ---------------------------------------------------------------------------


def onnx_outputs(exported: Exported, names: list[str], images: np.ndarray) -> Outputs:
    """From ONNX Runtime, with these outputs added to the file."""
    import onnx
    import onnxruntime

    model = onnx.load(exported.file)
    by_name = {node.name: node.output[0] for node in model.graph.node}
    there = {output.name for output in model.graph.output}
    for name in names:
        if by_name[name] not in there:
            model.graph.output.append(onnx.ValueInfoProto(name=by_name[name]))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    values = session.run([by_name[name] for name in names], {INPUT: images})
    return dict(zip(names, values, strict=True))


def openvino_outputs(exported: Exported, names: list[str], images: np.ndarray) -> Outputs:
    """From OpenVINO, with these outputs added to the model."""
    import openvino

    core = openvino.Core()
    model = core.read_model(exported.file)
    by_name = {op.get_friendly_name(): op for op in model.get_ordered_ops()}
    own, inner = len(model.outputs), [name for name in names if name != "classifier"]
    for name in inner:
        model.add_outputs(by_name[name].output(0))
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    values = compiled.create_infer_request().infer({INPUT: images})
    found = {name: values[own + i] for i, name in enumerate(inner)}
    return {**found, "classifier": values[compiled.output(LOGITS)]}


def program_outputs(exported: Exported, names: list[str], images: np.ndarray) -> Outputs:
    """From torch, of the exported program's modules."""
    modules = torch.export.unflatten(torch.export.load(exported.file))
    found: dict[str, np.ndarray] = {}
    paths = {f"network.{name}": name for name in names}

    def keep(name: str, module: nn.Module, given: Any, output: Tensor) -> None:
        found[name] = output.detach().numpy()

    for path, module in modules.named_modules():
        if path in paths:
            module.register_forward_hook(partial(keep, paths[path]))
    with torch.inference_mode():
        modules(torch.from_numpy(images))
    return found


READERS = {".onnx": onnx_outputs, ".xml": openvino_outputs, ".pt2": program_outputs}
