"""densekit's sides of the comparisons: the steps of its commands, on images that are noise."""

from __future__ import annotations

from torch import Tensor

from densekit.bench.compare import TrainingStep, as_options, random_batch, training_step
from densekit.bench.rounds import StepFunction
from densekit.config import Section
from densekit.data.config import DataConfig
from densekit.data.loader import TrainStream
from densekit.data.splits import open_examples
from densekit.data.transforms import Preprocessing
from densekit.infer.engines import logits_of
from densekit.models import variants
from densekit.models.variants import ModelConfig
from densekit.precision import resolve
from densekit.training import recipe

NUM_CLASSES = 1000
BATCHES_READ = 8  # in a step of `reading`: a loader's batches come in bursts


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


def inference(work: Workload, precision: str = "fp32") -> StepFunction:
    """A batch of `densekit evaluate`: uint8 images to logits on the host."""
    config = ModelConfig(name=work.model, num_classes=NUM_CLASSES)
    formats = resolve(work.device, precision)
    logits = logits_of(variants.create(config).eval(), Preprocessing(), formats)
    images, _ = random_batch(work.batch_size, 3, work.image_size, NUM_CLASSES)
    return lambda: logits(images)


def reading(list_file: str, work: Workload) -> StepFunction:
    """`densekit train`'s next batches of the listed images, read by one worker and normalised."""
    config = DataConfig(
        image_size=work.image_size, batch_size=work.batch_size, workers=1, drop_last=True
    )
    preprocessing = Preprocessing.from_config(config)
    stream = iter(TrainStream(open_examples(list_file), config, seed=0, epochs=1_000_000))

    def step() -> list[Tensor]:
        read = (next(stream).batches for _ in range(BATCHES_READ))
        return [preprocessing.normalize(batch.images) for batches in read for batch in batches]

    return step
