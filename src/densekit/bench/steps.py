"""What is measured of densekit: the steps that its commands make, of images that are noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from densekit.config import Section
from densekit.data.config import DataConfig
from densekit.data.loader import TrainStream
from densekit.data.mix import mixing
from densekit.data.splits import open_examples
from densekit.data.transforms import Preprocessing
from densekit.models import variants
from densekit.models.densenet import DenseBlock, DenseLayer
from densekit.models.variants import ModelConfig
from densekit.ops.choose import choose
from densekit.ops.lean import kernels
from densekit.precision import resolve
from densekit.training import optim
from densekit.training.optim import OptimConfig
from densekit.training.recipe import LoopConfig
from densekit.training.step import Learner, train_step

Step = Callable[[], object]
NUM_CLASSES = 1000


class Workload(Section):
    """What both sides compute."""

    model: str = "densenet121"
    image_size: int = 224
    batch_size: int = 16
    device: str = "auto"


@dataclass
class TrainingStep:
    """`densekit train`'s optimizer step: uint8 images to updated weights, its sums read."""

    learner: Learner
    loop: LoopConfig
    clip_norm: float | None
    images: Tensor
    labels: Tensor
    done: int = 0

    def __call__(self) -> list[float]:
        optim.set_lr(self.learner.optimizer, 1.0)
        shares, count = [(self.images, self.labels)], len(self.images)
        sums = train_step(
            self.learner, self.loop, shares, count, self.done, clip_norm=self.clip_norm
        )
        self.done += 1
        return sums.tolist()

    @property
    def op(self) -> str:
        """What `ops.choose` takes for the dense blocks, such as "lean (native)"."""
        device, dtype = self.learner.precision.device, self.learner.precision.dtype
        blocks = [m for m in self.learner.model.modules() if isinstance(m, DenseBlock)]
        ops = set()
        for block in blocks:
            layers = dict(block.named_children())
            channels = next(block.parameters()).shape[0]  # norm1's of the first layer
            x = torch.zeros(1, channels, 1, 1, device=device, dtype=dtype)
            ops.add(choose(block.op, x, layers, DenseLayer))
        by = {"lean": f"lean ({kernels.named(device, dtype)})"}
        return ", ".join(sorted(by.get(op, op) for op in ops))


def training(work: Workload, precision: str = "auto", op: str = "auto") -> TrainingStep:
    """Of a recipe that says no more than `work`, loop.precision and model.op."""
    tree = {"name": work.model, "num_classes": NUM_CLASSES, "op": op}
    side = {
        "image_size": work.image_size,
        "evaluate": {"resize": None},
        "batch_size": work.batch_size,
    }
    loop = {"device": work.device, "precision": precision}
    return training_step(
        ModelConfig.model_validate(tree),
        DataConfig.model_validate(side),
        OptimConfig(),
        LoopConfig.model_validate(loop),
    )


def training_step(
    model: ModelConfig, data: DataConfig, optimizer: OptimConfig, loop: LoopConfig
) -> TrainingStep:
    """Of data.batch_size images at once; the learner is as densekit.learner makes it, no EMA."""
    formats = resolve(loop.device, loop.precision, loop.memory_format)
    network = variants.create(model)
    if optimizer.freeze:
        network.freeze(optimizer.freeze)
    formats.place(network.train())
    preprocessing, classes = Preprocessing.from_config(data), network.config.num_classes
    learner = Learner(
        model=network,
        forward=network,
        optimizer=optim.create_optimizer(network, optimizer, data.batch_size),
        scaler=formats.scaler(),
        ema=None,
        precision=formats,
        prepare=lambda images: preprocessing.normalize(formats.send(images)),
        mix=mixing(data, classes),
    )
    images, labels = batch(data.batch_size, model.in_channels, data.train_side, classes)
    return TrainingStep(learner, loop, optimizer.clip_norm, images, labels)


def inference(work: Workload, precision: str = "fp32") -> Step:
    """What `densekit evaluate` computes of a batch, as densekit.engines has it."""
    formats = resolve(work.device, precision)
    config = ModelConfig(name=work.model, num_classes=NUM_CLASSES, op="reference")
    model = formats.place(variants.create(config).eval())
    preprocessing = Preprocessing()
    images, _ = batch(work.batch_size, 3, work.image_size, NUM_CLASSES)

    def step() -> Tensor:
        with torch.inference_mode(), formats.autocast():
            return model(preprocessing.normalize(formats.send(images))).float().cpu()

    return step


def reading(list_file: str, work: Workload) -> Step:
    """`densekit train`'s next batch of the listed images, read by one worker and normalised."""
    config = DataConfig(
        image_size=work.image_size, batch_size=work.batch_size, workers=1, drop_last=True
    )
    preprocessing = Preprocessing.from_config(config)
    stream = iter(TrainStream(open_examples(list_file), config, seed=0, epochs=1_000_000))

    def step() -> list[Tensor]:
        return [preprocessing.normalize(batch.images) for batch in next(stream).batches]

    return step


def batch(count: int, channels: int, side: int, classes: int) -> tuple[Tensor, Tensor]:
    """uint8 [n, C, S, S] and labels [n]; noise, since no side's speed depends on the pixels."""
    draw = torch.Generator().manual_seed(0)
    shape = (count, channels, side, side)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=draw)
    return images, torch.randint(classes, (count,), generator=draw)
