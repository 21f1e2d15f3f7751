"""What a person should know of a recipe before its run starts."""

from __future__ import annotations

from densekit.data.groups import group_notes
from densekit.data.listing import Examples
from densekit.training.fine_tuning import fine_tuning_plan
from densekit.training.loss import imbalance_notes
from densekit.training.optim import scaling_notes
from densekit.training.recipe import Recipe


def recipe_notes(recipe: Recipe, train: Examples, val: Examples) -> list[str]:
    """Of a resolved recipe and its images, a sentence each."""
    return [
        *group_notes(train, val, recipe.data.group),
        *scaling_notes(recipe.optim, recipe.data.batch_size),
        *fine_tuning_plan(recipe),
        *imbalance_notes(recipe, train),
    ]
