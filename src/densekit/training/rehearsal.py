"""`densekit train --dry-run`: all that comes before the first step, and how long a step takes."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from densekit import distributed
from densekit.progress import waiting
from densekit.training.loop import make_plan
from densekit.training.plan import Plan
from densekit.training.recipe import Recipe
from densekit.training.run_folder import RunFolder
from densekit.training.step import create_learner, train_step

REHEARSED = {"cpu": 8, "mps": 16, "cuda": 64}  # images of the step


@dataclass(frozen=True)
class Rehearsal:
    """What came of it."""

    plan: Plan
    notes: list[str]
    """What a person should know before the run starts."""
    images: int
    """Images of the step, on each rank."""
    seconds: float
    """That all steps of the run take, by that one."""


def rehearse(recipe: Recipe) -> Rehearsal:
    """Sets a run up as `train` does, but claims no folder, and trains two steps of grey images.

    Raises UserError for whatever `train` would refuse before its first step.
    """
    plan = make_plan(recipe)
    recipe = plan.recipe
    folder_notes = distributed.from_main(lambda: RunFolder.look(recipe, plan.digest))
    learner = create_learner(recipe, plan.precision)
    share = recipe.micro_batch_size // distributed.world_size()
    count = max(2, min(share, REHEARSED[plan.precision.device.type]))
    side = recipe.data.train_side
    images = torch.full((count, recipe.data.channels, side, side), 128, dtype=torch.uint8)
    shares = [(images, torch.from_numpy(plan.train.labels[:1]).repeat_interleave(count, 0))]
    with waiting("one step, to see how long the run will take"):
        for step in range(2):  # of which the first one pays for what happens once
            began = time.perf_counter()
            total = count * distributed.world_size()
            train_step(learner, shares, total, step).tolist()
            seconds = time.perf_counter() - began
    of_run = len(plan.train) / distributed.world_size() * recipe.loop.epochs
    notes = [*plan.warnings, *learner.notes, *folder_notes]
    return Rehearsal(plan, notes, count, seconds / count * of_run)
