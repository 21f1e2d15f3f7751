"""A recipe against this machine and these images: every `auto` resolved, every check made."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from densekit import distributed, precision
from densekit.data.checks import check_split
from densekit.data.config import DataConfig, Task
from densekit.data.holdout import Sides
from densekit.data.listing import Examples
from densekit.data.loader import resolve_reading, steps_per_epoch
from densekit.data.splits import anchored, open_split
from densekit.data.transforms import Preprocessing
from densekit.models.artifact import ArtifactConfig, Described, Thresholds, provenance
from densekit.models.densenet import DenseNetConfig
from densekit.models.variants import architecture
from densekit.ops.choose import op_of_run
from densekit.ops.lean import kernels
from densekit.precision import Precision
from densekit.training.graph import resolve_graph
from densekit.training.monitor import for_images
from densekit.training.notes import recipe_notes
from densekit.training.optim import Schedule
from densekit.training.recipe import Recipe, check, check_batches

OwnImages = Callable[[DataConfig, Task, int | None, Sides | None], tuple[Examples, Examples]]
"""As `open_split`."""


@dataclass(frozen=True)
class Plan:
    """All that is decided before the first step; nothing of it changes later."""

    recipe: Recipe
    """With every `auto` resolved: what recipe.yaml holds."""
    architecture: DenseNetConfig
    train: Examples
    val: Examples
    counts: np.ndarray
    """Training images of each class."""
    warnings: list[str]
    precision: Precision
    eval_precision: Precision
    threads: int
    steps_per_epoch: int

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


def make_plan(recipe: Recipe, known: Sides | None = None, images: OwnImages | None = None) -> Plan:
    """Starts the process group and looks at the data; what is held out of the training list stays
    on the side where it is `known` to be. Raises UserError, alike on all ranks.

    `images` opens those of a program, in place of the recipe's.
    """
    check(recipe, distributed.world_size())
    loop = recipe.loop
    formats = precision.resolve(
        loop.device,
        loop.precision,
        loop.memory_format,
        local_rank=distributed.local_rank(),
    )
    distributed.start(formats.device, loop.rank_timeout)
    threads = distributed.set_threads(loop.threads)
    opens = open_split if images is None else images
    train, val = distributed.on_every_rank(
        lambda: opens(recipe.data, recipe.model.task, recipe.model.num_classes, known)
    )
    counts, warnings = distributed.from_main(
        lambda: check_split(train, val, recipe.model.num_classes, recipe.data)
    )
    op, why = distributed.from_main(
        lambda: op_of_run(recipe.model.op, formats.device, formats.dtype)
    )
    chosen = for_images(loop, recipe.model.task, train, counts)
    chosen["cuda_graph"], no_graph = resolve_graph(recipe, formats.device)
    resolved = _resolve(recipe, formats, train, len(counts), op, chosen)
    check_batches(resolved, len(train), distributed.world_size())
    data = resolved.data
    return Plan(
        recipe=resolved,
        architecture=architecture(resolved.model).model_copy(
            update={"image_size": data.image_size}
        ),
        train=train,
        val=val,
        counts=counts,
        warnings=[
            *warnings,
            *why,
            *no_graph,
            *recipe_notes(resolved, train, val),
        ],
        precision=formats,
        eval_precision=precision.resolve(
            formats.device.type, loop.eval_precision, local_rank=distributed.local_rank()
        ),
        threads=threads,
        steps_per_epoch=steps_per_epoch(len(train), data.batch_size, data.drop_last),
    )


def _resolve(
    recipe: Recipe,
    formats: Precision,
    train: Examples,
    num_classes: int,
    op: str,
    chosen: dict[str, Any],
) -> Recipe:
    """`recipe` with every `auto` and every null that the data or the machine decides filled in."""
    model, data, loop = recipe.model, recipe.data, recipe.loop
    updates: dict[str, Any] = {
        "model": model.model_copy(update={"num_classes": num_classes, "op": op}),
        "data": resolve_reading(data, train, formats.device.type, distributed.local_world_size()),
        "loop": loop.model_copy(
            update={
                "device": formats.device.type,
                "precision": formats.name,
                "memory_format": formats.memory_format_name,
                **chosen,
            }
        ),
    }
    return recipe.model_copy(update=updates)
