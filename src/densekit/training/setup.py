"""A recipe against this machine and these images: every `auto` resolved, every check made."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from densekit import distributed
from densekit.data.holdout import Sides
from densekit.data.listing import Examples
from densekit.data.loader import resolve_reading, steps_per_epoch
from densekit.data.run_images import OwnImages, open_checked
from densekit.data.splits import anchored
from densekit.data.transforms import Preprocessing
from densekit.models.artifact import ArtifactConfig, Described, Thresholds, provenance
from densekit.models.densenet import DenseNetConfig
from densekit.models.variants import architecture
from densekit.ops.choose import op_of_run
from densekit.ops.lean import kernels
from densekit.precision import Precision, resolve
from densekit.training.graph import resolve_graph
from densekit.training.monitor import for_images
from densekit.training.notes import recipe_notes
from densekit.training.optim import Schedule
from densekit.training.recipe import Recipe, check, check_batches


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
    steps_per_epoch: int

    @property
    def architecture(self) -> DenseNetConfig:
        """Of the network, with the recipe's size of image."""
        size = {"image_size": self.recipe.data.image_size}
        return architecture(self.recipe.model).model_copy(update=size)

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
    model, loop = recipe.model, recipe.loop
    rank = distributed.local_rank()
    formats = resolve(loop.device, loop.precision, loop.memory_format, local_rank=rank)
    distributed.start(formats.device, loop.rank_timeout)
    threads = distributed.set_threads(loop.threads)
    train, val, counts, notes = open_checked(
        recipe.data, model.task, model.num_classes, known, images
    )
    recipe, of_recipe = _resolve_recipe(recipe, formats, train, val, counts)
    return Plan(
        recipe=recipe,
        train=train,
        val=val,
        counts=counts,
        warnings=[*notes, *of_recipe],
        precision=formats,
        eval_precision=resolve(formats.device.type, loop.eval_precision, local_rank=rank),
        threads=threads,
        steps_per_epoch=steps_per_epoch(len(train), recipe.data.batch_size, recipe.data.drop_last),
    )


def _resolve_recipe(
    recipe: Recipe, formats: Precision, train: Examples, val: Examples, counts: np.ndarray
) -> tuple[Recipe, list[str]]:
    """`recipe` with every `auto` and every null that the data or the machine decides filled in;
    and what a person should know of it."""
    model, data, loop = recipe.model, recipe.data, recipe.loop
    device = formats.device
    op, no_lean = distributed.from_main(lambda: op_of_run(model.op, device, formats.dtype))
    graph, no_graph = resolve_graph(recipe, device)
    reading, of_cache = resolve_reading(data, train, val, device.type, loop.epochs)
    of_loop = {
        "device": device.type,
        "precision": formats.name,
        "memory_format": formats.memory_format_name,
        "cuda_graph": graph,
        **for_images(loop, model.task, train, counts),
    }
    resolved = recipe.model_copy(
        update={
            "model": model.model_copy(update={"num_classes": len(counts), "op": op}),
            "data": reading,
            "loop": loop.model_copy(update=of_loop),
        }
    )
    check_batches(resolved, len(train), distributed.world_size())
    return resolved, [*no_lean, *no_graph, *of_cache, *recipe_notes(resolved, train, val)]
