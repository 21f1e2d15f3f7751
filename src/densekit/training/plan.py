"""What is decided before the first step, and what follows from it."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from densekit import distributed
from densekit.data.listing import Examples
from densekit.data.loader import steps_per_epoch
from densekit.data.splits import anchored
from densekit.data.transforms import Preprocessing
from densekit.models.artifact import ArtifactConfig, Described, Thresholds, provenance
from densekit.models.densenet import DenseNetConfig
from densekit.models.variants import architecture
from densekit.ops.lean import kernels
from densekit.precision import Precision
from densekit.training.optim import Schedule
from densekit.training.recipe import Recipe


@dataclass(frozen=True)
class Plan:
    """All that is decided before the first step; nothing of it changes later."""

    recipe: Recipe
    """With every `auto` resolved: what recipe.yaml holds."""
    train: Examples
    val: Examples
    counts: np.ndarray
    """Training images of each class."""
    warnings: list[str]
    precision: Precision
    eval_precision: Precision
    threads: int

    @property
    def architecture(self) -> DenseNetConfig:
        """Of the network, with the recipe's size of image."""
        size = {"image_size": self.recipe.data.image_size}
        return architecture(self.recipe.model).model_copy(update=size)

    @property
    def steps_per_epoch(self) -> int:
        data = self.recipe.data
        return steps_per_epoch(len(self.train), data.batch_size, data.drop_last)

    @property
    def steps(self) -> int:
        return self.recipe.loop.epochs * self.steps_per_epoch

    @property
    def schedule(self) -> Schedule:
        recipe = self.recipe
        return Schedule(
            recipe.optim, recipe.data.batch_size, self.steps_per_epoch, recipe.loop.epochs
        )

    @property
    def classes(self) -> list[str]:
        """The classes' names by label."""
        names = {**self.val.classes, **self.train.classes}
        return [names.get(label, str(label)) for label in range(self.architecture.num_classes)]

    @cached_property
    def digest(self) -> str:
        """Of both lists: a run is resumed with the images it began with. Seconds for a million."""
        return f"{self.train.digest()}-{self.val.digest()}"

    def artifact(self, evaluation: dict[str, Any]) -> ArtifactConfig:
        """What the run's artifacts say of their weights, by their last evaluation."""
        recipe = self.recipe
        metrics = {k: v for k, v in evaluation.items() if k not in ("epoch", "thresholds")}
        chosen = evaluation.get("thresholds")
        rule = str(recipe.loop.threshold)
        return ArtifactConfig(
            task=recipe.model.task,
            thresholds=None if chosen is None else Thresholds(rule=rule, values=chosen),
            model=Described(name=recipe.model.name, architecture=self.architecture),
            preprocessing=Preprocessing.from_config(recipe.data),
            classes=tuple(self.classes),
            metrics=metrics,
            data=anchored(recipe.data).model_dump(mode="json"),
            provenance=provenance(recipe.model_dump(mode="json")),
        )

    @property
    def environment(self) -> dict[str, Any]:
        """What bit-identity depends on besides the recipe."""
        cuda = self.precision.device.type == "cuda"
        device = torch.cuda.get_device_name() if cuda else torch.backends.cpu.get_cpu_capability()
        return {
            "torch": str(torch.__version__),
            "machine": f"{platform.machine()} {device}",
            "threads": self.threads,
            "world_size": distributed.world_size(),
            "op": self.recipe.model.op,
            "kernels": kernels.implementation(self.precision.device, self.precision.dtype),
        }

    def changes_since(self, before: dict[str, Any]) -> list[str]:
        """What is not as in the environment of a state, a sentence each."""
        return [
            f"{key} was {before[key]} and is now {value}: the run goes on, but its numbers are "
            f"not bit for bit what they would have been"
            for key, value in self.environment.items()
            if before[key] != value
        ]
