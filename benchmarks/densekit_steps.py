"""densekit's sides of the comparisons: the steps of its commands, on images that are noise."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from torch.export import ExportedProgram

from densekit.bench.compare import as_options
from densekit.bench.rounds import StepFunction
from densekit.bench.training_step import TrainingStep, random_batch, training_step
from densekit.config import Section
from densekit.data.transforms import Preprocessing
from densekit.export import formats, quantize
from densekit.export.folder import write_notes
from densekit.export.network import ExportedNetwork, traced
from densekit.infer.engines import exported_logits, logits_of, run_openvino
from densekit.infer.exported import ExportedConfig, ExportSection, Target, read_exported
from densekit.models import artifact, variants
from densekit.models.artifact import ArtifactConfig, Described
from densekit.models.variants import ModelConfig
from densekit.precision import resolve
from densekit.training import recipe

NUM_CLASSES = 1000
CALIBRATION = 16  # images of noise: the speed is that of any other ranges


class Workload(Section):
    """What both sides of a comparison compute."""

    model: str = "densenet121"
    image_size: int = 224
    batch_size: int = 16
    device: str = "auto"


def training(
    work: Workload, precision: str = "auto", op: str = "auto", cuda_graph: str = "auto"
) -> TrainingStep:
    """A step of `densekit train` with a recipe that says no more than these."""
    options = [
        *as_options(work.model, work.image_size, work.batch_size),
        f"model.num_classes={NUM_CLASSES}",
        f"model.op={op}",
        f"loop.device={work.device}",
        f"loop.precision={precision}",
        f"loop.cuda_graph={cuda_graph}",
    ]
    return training_step(recipe.load_recipe(None, options))


def inference(work: Workload, precision: str = "fp32", op: str = "auto") -> StepFunction:
    """A batch of `densekit evaluate`: uint8 images to logits on the host."""
    config = ModelConfig(name=work.model, num_classes=NUM_CLASSES)
    formats = resolve(work.device, precision)
    logits = logits_of(variants.create(config).eval(), Preprocessing(), formats, op)
    images, _ = random_batch(work.batch_size, 3, work.image_size, NUM_CLASSES)
    return lambda: logits(images)


def int8(work: Workload, folder: Path) -> StepFunction:
    """The same of an export to openvino-int8, by OpenVINO."""
    exported = read_exported(written(work, "openvino-int8", folder))
    logits = exported_logits(exported, run_openvino(exported, resolve("cpu", "fp32")))
    images, _ = random_batch(work.batch_size, 3, work.image_size, NUM_CLASSES)
    return lambda: logits(images)


def written(work: Workload, to: Target | None, folder: Path) -> Path:
    """In `folder` an artifact with random weights, or its export as `densekit export` makes it.

    The first that asks has it written, in a process of its own: its memory is none of a step's.
    """
    place = folder / f"{work.model}-{work.image_size}-{to or 'artifact'}"
    if not place.exists():
        with ProcessPoolExecutor(1, get_context("spawn")) as apart:
            apart.submit(_write_network, work, to, place).result()
    return place


def _write_network(work: Workload, to: Target | None, folder: Path) -> None:
    seen = Preprocessing(crop=work.image_size)
    model = variants.create(ModelConfig(name=work.model, num_classes=NUM_CLASSES)).eval()
    described = Described(name=work.model, architecture=model.config)
    classes = tuple(map(str, range(NUM_CLASSES)))
    if to is None:
        config = ArtifactConfig(model=described, preprocessing=seen, classes=classes)
        artifact.write_artifact(folder, config, model.state_dict())
        return
    folder.mkdir()
    exported = ExportedConfig(
        model=described, preprocessing=seen, classes=classes, export=ExportSection(to=to)
    )
    program = traced(ExportedNetwork(model, "multiclass"), 3, work.image_size, any_size=False)
    _write_file(program, to, seen, folder, exported.model_dump_json())
    write_notes(folder, exported, {})


def _write_file(
    program: ExportedProgram, to: Target, seen: Preprocessing, folder: Path, text: str
) -> None:
    if to == "torch-export":
        formats.write_program(program, folder, text)
        return
    onnx = formats.to_onnx(program, with_preprocessing=False)
    noise, _ = random_batch(CALIBRATION, 3, seen.crop, NUM_CLASSES)
    images = seen.normalize(noise).numpy()
    if to == "onnx":
        formats.write_onnx(onnx, folder, text)
    elif to == "onnx-int8":
        formats.write_onnx(quantize.quantize_onnx(onnx, images, ()), folder, text)
    else:
        model = formats.to_openvino(onnx)
        if to == "openvino-int8":
            model = quantize.quantize_openvino(model, images, ())
        formats.write_openvino(model, folder, text)
