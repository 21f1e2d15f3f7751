"""The step that is measured: that of `densekit train`, on images in memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from densekit import precision
from densekit.models import variants
from densekit.models.densenet import DenseBlock, DenseLayer
from densekit.ops.choose import choose
from densekit.ops.lean import kernels
from densekit.training.recipe import Recipe
from densekit.training.step import Learner, create_learner, train_step


@dataclass
class TrainingStep:
    """A step of `densekit train`, from uint8 images to updated weights and the step's sums."""

    learner: Learner
    images: Tensor
    labels: Tensor
    steps: int = 0

    def __call__(self) -> list[float]:
        shares = [(self.images, self.labels)]
        sums = train_step(self.learner, shares, len(self.images), self.steps)
        self.steps += 1
        return sums.tolist()

    @property
    def op(self) -> str:
        """What computes the dense blocks, such as "lean (native)"."""
        device, dtype = self.learner.precision.device, self.learner.precision.dtype
        chosen = set()
        for block in self.learner.model.modules():
            if isinstance(block, DenseBlock):
                layers = dict(block.named_children())
                channels = next(block.parameters()).shape[0]  # norm1's of the first layer
                x = torch.zeros(1, channels, 1, 1, device=device, dtype=dtype)
                chosen.add(choose(block.op, x, layers, DenseLayer))
        names = {"lean": f"lean ({kernels.implementation(device, dtype)})"}
        return ", ".join(sorted(names.get(op, op) for op in chosen))


def training_step(recipe: Recipe) -> TrainingStep:
    """Of data.batch_size images at once; they are noise, since speed does not depend on pixels."""
    loop, data = recipe.loop, recipe.data
    formats = precision.resolve(loop.device, loop.precision, loop.memory_format)
    num_classes = variants.architecture(recipe.model).num_classes
    model = {"num_classes": num_classes, "pretrained": None}  # nor on what the weights are
    balanced = loop.class_weights == "balanced"
    weights = (1.0,) * num_classes if balanced else loop.class_weights
    recipe = recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update=model),
            "loop": loop.model_copy(update={"class_weights": weights}),
        }
    )
    learner = create_learner(recipe, formats)
    images, labels = random_batch(data.batch_size, data.channels, data.train_side, num_classes)
    if recipe.model.task != "multiclass":
        labels = F.one_hot(labels, num_classes).to(torch.int8)
    if formats.device.type == "cuda":
        images, labels = images.pin_memory(), labels.pin_memory()  # as the loader's are
    return TrainingStep(learner, images, labels)


def random_batch(count: int, channels: int, side: int, classes: int) -> tuple[Tensor, Tensor]:
    """uint8 [n, C, S, S] and labels [n]."""
    draw = torch.Generator().manual_seed(0)
    shape = (count, channels, side, side)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=draw)
    return images, torch.randint(classes, (count,), generator=draw)
