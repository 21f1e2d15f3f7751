"""densekit's sides of the comparisons: the steps of its commands, on images that are noise."""

from __future__ import annotations

import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from densekit.bench.compare import TrainingStep, as_options, random_batch, training_step
from densekit.bench.rounds import StepFunction
from densekit.config import Section
from densekit.data.transforms import Preprocessing
from densekit.export import formats, quantize
from densekit.export.network import ExportedNetwork, traced
from densekit.infer.engines import exported_logits, logits_of, run_openvino
from densekit.infer.exported import Exported, ExportedConfig, ExportSection
from densekit.models import variants
from densekit.models.artifact import Described
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


def int8(work: Workload) -> StepFunction:
    """The same of an export to openvino-int8, by OpenVINO."""
    with tempfile.TemporaryDirectory() as folder:
        with ProcessPoolExecutor(
            1, get_context("spawn")
        ) as apart:  # its memory is none of a step's
            exported = apart.submit(write_int8, work, Path(folder)).result()
        run = run_openvino(exported, resolve("cpu", "fp32"))
    logits = exported_logits(exported, run)
    images, _ = random_batch(work.batch_size, 3, work.image_size, NUM_CLASSES)
    return lambda: logits(images)


def write_int8(work: Workload, folder: Path) -> Exported:
    """Such an export's file, as `densekit export` makes it."""
    seen = Preprocessing(crop=work.image_size)
    model = variants.create(ModelConfig(name=work.model, num_classes=NUM_CLASSES)).eval()
    noise, _ = random_batch(CALIBRATION, 3, work.image_size, NUM_CLASSES)
    program = traced(ExportedNetwork(model, "multiclass"), 3, work.image_size, any_size=False)
    float_model = formats.to_openvino(formats.to_onnx(program, with_preprocessing=False))
    made = quantize.quantize_openvino(float_model, seen.normalize(noise).numpy(), ())
    config = ExportedConfig(
        model=Described(name=work.model, architecture=model.config),
        preprocessing=seen,
        classes=tuple(map(str, range(NUM_CLASSES))),
        export=ExportSection(to="openvino-int8"),
    )
    formats.write_openvino(made, folder, config.model_dump_json())
    return Exported(folder, config)
