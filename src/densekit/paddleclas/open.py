"""A recipe from what -c and -o say: densekit's own file or name, or a PaddleClas file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from densekit import distributed
from densekit.config import Tree
from densekit.paddleclas import flags, translate
from densekit.paddleclas.infer import Infer
from densekit.paddleclas.translate import Use
from densekit.training import recipe
from densekit.training.recipe import Recipe


@dataclass(frozen=True)
class OpenedRecipe:
    """What -c and -o say."""

    recipe: Recipe
    notes: Sequence[str] = ()
    """What a person should know of it."""
    infer: Infer = field(default_factory=Infer)
    """What a PaddleClas file asks of predict."""
    paddleclas: bool = False


def open_recipe(
    config: str | None,
    options: Sequence[str] = (),
    use: Use = "train",
    suggested: Tree | None = None,
) -> OpenedRecipe:
    """densekit's own file or name, or a PaddleClas file, which its sections tell apart.

    Raises UserError.
    """
    if config is None or not translate.recognises(config):
        return OpenedRecipe(*recipe.load_with_notes(config, options, suggested))
    found = translate.load(config, options, distributed.world_size(), use)
    translate.check_device(found)
    notes = [*flags.follow(os.environ), *found.renamed, *(found.said if use == "train" else ())]
    return OpenedRecipe(found.recipe, notes, found.infer, paddleclas=True)
