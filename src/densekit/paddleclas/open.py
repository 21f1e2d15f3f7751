"""The recipe of a command's -c, -o and --data: of densekit's own file, or of a PaddleClas file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from densekit.config import assemble
from densekit.paddleclas.here import translate_here
from densekit.paddleclas.infer import Infer
from densekit.paddleclas.translate import Use, recognises
from densekit.training.layers import recipe_layers
from densekit.training.recipe import Recipe


@dataclass(frozen=True)
class OpenedRecipe:
    """The recipe that -c, -o and --data come to."""

    recipe: Recipe
    notes: Sequence[str]
    """What a person should know of it."""
    infer: Infer = field(default_factory=Infer)
    """What a PaddleClas file asks of predict."""
    paddleclas: bool = False
    export_to: str | None = None
    """Global.save_inference_dir."""


def open_recipe(
    config: str | None,
    options: Sequence[str] = (),
    use: Use = "train",
    folder: str | None = None,
) -> OpenedRecipe:
    """Opens densekit's own file or name, or a PaddleClas file, which its sections tell apart.

    `folder` is the user's own folder of images, see `recipe_layers`. Raises UserError.
    """
    if config is None or not recognises(config):
        layers, notes = recipe_layers(config, options, folder)
        recipe, renamed = assemble(Recipe, layers)
        return OpenedRecipe(recipe, [*renamed, *notes])
    found, notes = translate_here(config, options, use, folder)
    recipe, renamed = assemble(Recipe, found.layers)
    return OpenedRecipe(recipe, [*renamed, *notes], found.infer, True, found.export_to)
